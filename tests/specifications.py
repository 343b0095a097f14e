"""Typed settings and specifications for tests: what a test does not name has its default."""

from __future__ import annotations

from typing import Any, TypeVar

from rlhf.config import Stage
from rlhf.config.expand import deep_merge
from rlhf.config.section import Section
from rlhf.config.specification import JOBS, LoadingSpecification

SectionT = TypeVar("SectionT", bound=Section)

UPSTREAM: dict[str, dict[str, Any]] = {
    "sft": {"model": "m-00000000"},
    "reward": {"model": "m-00000000"},
    "ppo": {"sft": "s-00000000", "reward": "r-00000000"},
    "evaluate_sft": {"sft": "s-00000000"},
    "evaluate_reward": {"reward": "r-00000000"},
}
SEEDLESS = ("evaluate_sft", "evaluate_reward")
RESOLVED: dict[str, dict[str, Any]] = {
    "sft": {"data_weights": [1.0]},
    "reward": {"data_weights": [1.0]},
    "ppo": {"data_weights": [1.0], "gold_reward": None},
    "evaluate_sft": {"max_seq_len": 512, "dtype": "fp32"},
    "evaluate_reward": {"max_seq_len": 512, "dtype": "fp32", "gold_reward": None},
    "baseline": {"dtype": "fp32", "gold_reward": None},
    "evaluate_ppo": {"dtype": "fp32", "gold_reward": None},
}


def changed(section: SectionT, **changes: Any) -> SectionT:
    """A copy with other values, checked as the configuration is: a misspelt key fails."""
    return type(section).model_validate({**section.model_dump(), **changes})


def specification(
    kind: str,
    settings: dict[str, Any] | None = None,
    execution: dict[str, Any] | None = None,
    upstream: dict[str, Any] | None = None,
    **fields: Any,
) -> Any:
    """The specification of a stage of a kind.

    Args:
        kind: of the stage.
        settings, execution: what differs from the defaults.
        upstream: roles and IDs; `tokens` and `split` are empty unless named.
        fields: `id`, `seed`.
    """
    made: LoadingSpecification = JOBS[kind].model_validate(
        {
            "schema_version": 1,
            "stage": kind,
            "id": f"x-{kind.replace('_', '-')}-00000000",
            "seed": None if kind in SEEDLESS else 1,
            **fields,
            "settings": {**RESOLVED[kind], **(settings or {})},
            "upstream": {**(UPSTREAM[kind] if upstream is None else upstream), **_data(upstream or {})},
            "execution": execution or {},
        }
    )
    return made


def specification_of(
    stage: Stage, settings: dict[str, Any] | None = None, execution: dict[str, Any] | None = None
) -> Any:
    """The specification of a stage of a plan, with other settings."""
    content = deep_merge(stage.spec(), {"settings": settings or {}})
    how = deep_merge(stage.job.model_dump(mode="json"), execution or {})
    made: LoadingSpecification = JOBS[stage.kind].model_validate({**content, "execution": how})
    return made


def _data(upstream: dict[str, Any]) -> dict[str, Any]:
    return {role: upstream.get(role, []) for role in ("tokens", "split")}
