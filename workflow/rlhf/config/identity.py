"""Content addresses of stages: a readable label and the hash of what the stage depends on."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

IDENTITY_VERSION = 2  # raised when results of older code are of a form that this code cannot read
# Kind -> number, raised with each change of the code (see CHANGELOG.md) by which equal settings give other results.
REVISIONS = {
    "dataset": 4,
    "model": 1,
    "tokens": 1,
    "split": 1,
    "sft": 1,
    "reward": 1,
    "ppo": 1,
    "evaluate_reward": 1,
}


def slug(text: str, length: int = 32) -> str:
    """Lower-case letters, digits and single dashes; never empty, at most `length` characters."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-")
    return cleaned or "x"


def stage_id(label: str, kind: str, settings: dict[str, Any], upstream: dict[str, Any]) -> str:
    """`<label>-<8 hex digits>`: the digits hash kind, its revision, settings and upstream IDs, and nothing else.

    Args:
        label: readable part; must follow from the settings too, so that equal stages have equal IDs.
        kind: stage kind, for example `sft`.
        settings: resolved settings that determine the result; JSON types only.
        upstream: role -> ID or list of IDs of the stages it depends on.
    """
    content = {"version": IDENTITY_VERSION, "kind": kind, "settings": settings, "upstream": upstream}
    if kind in REVISIONS:
        content["revision"] = REVISIONS[kind]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{slug(label)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
