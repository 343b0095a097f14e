"""Typed configuration and its resolution into stages. Light on purpose: every submitted job imports it."""

from rlhf.config.expand import parse
from rlhf.config.fingerprints import Fingerprints
from rlhf.config.finished import accept_finished, remove_recorded_states
from rlhf.config.launch import launcher
from rlhf.config.messages import closing_message, failure_message
from rlhf.config.plan import Plan, Run, Stage
from rlhf.config.requirements import Requirement, require
from rlhf.config.resolve import resolve
from rlhf.config.schema import Configuration

__all__ = [
    "accept_finished",
    "Configuration",
    "Fingerprints",
    "Plan",
    "Requirement",
    "Run",
    "Stage",
    "closing_message",
    "failure_message",
    "launcher",
    "parse",
    "remove_recorded_states",
    "require",
    "resolve",
]
