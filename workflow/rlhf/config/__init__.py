"""Typed configuration and its resolution into stages. Light on purpose: every submitted job imports it."""

from rlhf.config.cluster import check_cluster, require_no_jobs, stand_before_slurm
from rlhf.config.command_line import with_types
from rlhf.config.expand import parse
from rlhf.config.fingerprints import Fingerprints
from rlhf.config.finished import accept_finished, remove_recorded_states
from rlhf.config.launch import cluster_resources, planned_execution, planned_memory
from rlhf.config.messages import closing_message, failure_message, plans_message
from rlhf.config.plan import Plan, Run, Stage, dumped
from rlhf.config.requirements import Requirement, read_facts, require
from rlhf.config.resolve import resolve
from rlhf.config.schema import Configuration
from rlhf.config.yaml_text import require_distinct_keys
from rlhf.phases import EVALUATIONS, PHASES, PLANNED, RULES
from rlhf.records.plan import read_plan

__all__ = [
    "accept_finished",
    "Configuration",
    "EVALUATIONS",
    "Fingerprints",
    "PHASES",
    "PLANNED",
    "Plan",
    "RULES",
    "Requirement",
    "Run",
    "Stage",
    "check_cluster",
    "closing_message",
    "cluster_resources",
    "dumped",
    "failure_message",
    "parse",
    "planned_execution",
    "planned_memory",
    "plans_message",
    "read_facts",
    "read_plan",
    "remove_recorded_states",
    "require",
    "require_distinct_keys",
    "require_no_jobs",
    "resolve",
    "stand_before_slurm",
    "with_types",
]
