"""A stage's memory plan from its files, for the rule `plan_memory`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.config.memory import MemorySettings
from rlhf.config.specification import TrainingSpecification
from rlhf.memory.devices import GIB, Device, find_device
from rlhf.planning.forecast import ROLES, read_config
from rlhf.planning.plan import plan_stage
from rlhf.runtime.files import write_json
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)


def write_plan(
    stage: TrainingSpecification, memory: MemorySettings, models: list[Path], output: Path
) -> dict[str, Any]:
    """Plan a stage and write memory_plan.json.

    Args:
        stage: what is planned, and how it shall run.
        memory: the GPU, and what follows where the stage does not fit.
        models: folders of the models it starts from in the end: one, or for PPO the policy's and the reward model's.
        output: memory_plan.json.

    Raises:
        UserError: a model cannot be read, or the GPU is unknown.
    """
    configs = {role: read_config(model) for role, model in zip(ROLES[stage.stage], models, strict=True)}
    device: Device | None = None
    if memory.gpu is not None or memory.gpu_memory_gib is not None:
        device = find_device(memory.gpu, memory.gpu_memory_gib)
    plan = plan_stage(stage.stage, stage.settings, stage.execution, configs, device, memory.on_misfit)
    write_json(output, {"id": stage.id, **plan})
    logger.info("%s %s: %s, %s", stage.stage, stage.id, plan["verdict"], plan["decision"])
    for name in ("expected_allocated", "expected_device", "upper_device"):
        logger.info("  %s: %s bytes", name, plan[name])
    for entry in (*plan["adaptations"], *plan["advice"]):
        logger.info("  %s saves %d bytes (%s)", entry["name"], entry["saves"], entry["cost"])
    if plan["remedy"]:
        logger.warning("  not enough: %s", plan["remedy"])
    return plan


def refusal(plan: dict[str, Any]) -> str:
    """Why a stage is refused, and what would help."""
    device = plan["device"]
    steps = "; ".join(entry["name"] for entry in plan["advice"]) or "none"
    return (
        f"{plan['stage']} {plan['id']}: needs up to {plan['upper_device'] / GIB:.1f} GiB of a device in phase "
        f"{plan['peak']['phase']}, {device['name']} has {device['capacity'] / GIB:.1f} GiB. Steps that do not change "
        f"the result (`memory.on_misfit: adapt` takes them): {steps}"
        + (f". They are not enough: {plan['remedy']}" if plan["remedy"] else "")
    )
