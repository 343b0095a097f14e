"""A stage's memory plan from its files, for the rule `plan_memory`."""

from __future__ import annotations

from pathlib import Path

from rlhf.config.schema import MemorySettings
from rlhf.config.specfile import read_job
from rlhf.config.specification import (
    TRAINED,
    LoadingSpecification,
    ResolvedPpo,
    TrainedSpecification,
)
from rlhf.errors import UserError
from rlhf.memory.blueprint import EarlierAdapters
from rlhf.memory.devices import GIB, Device, find_device
from rlhf.planning.forecast import ROLES, Earlier, read_config, stored_adapters
from rlhf.planning.plan import plan_stage
from rlhf.records.plan import StagePlan, write_plan
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)


def plan_from_files(
    stage: LoadingSpecification,
    memory: MemorySettings,
    models: list[Path],
    output: Path,
    upstream: list[Path] | None = None,
) -> StagePlan:
    """Plan a stage and write memory_plan.json.

    Args:
        stage: what is planned, and how it shall run.
        memory: the GPU, and what follows where the stage does not fit.
        models: folders of the models from which those that it loads start in the end, by the roles of
            `rlhf.planning.forecast.ROLES`.
        output: memory_plan.json.
        upstream: spec.yaml of the training stages between these models and this stage, which need not have run.

    Raises:
        UserError: a model or a specification cannot be read, or the GPU is unknown.
    """
    configs = {role: read_config(model) for role, model in zip(ROLES[stage.stage], models, strict=True)}
    device: Device | None = None
    if memory.gpu is not None or memory.gpu_memory_gib is not None:
        device = find_device(memory.gpu, memory.gpu_memory_gib)
    earlier = earlier_adapters(stage, models, [read_job(TRAINED, path) for path in upstream or []])
    found = plan_stage(stage.stage, stage.settings, stage.execution, configs, device, memory.on_misfit, earlier)
    plan: StagePlan = {"id": stage.id, **found}
    write_plan(output, plan)
    logger.info("%s %s: %s, %s", stage.stage, stage.id, plan["verdict"], plan["decision"])
    for name in ("expected_allocated", "expected_device", "upper_device"):
        if plan[name] is not None:  # on the CPU there is no device
            logger.info("  %s: %d bytes", name, plan[name])
    for entry in (*plan["adaptations"], *plan["advice"]):
        logger.info("  %s saves %d bytes (%s)", entry["name"], entry["saves"], entry["cost"])
    if plan["remedy"]:
        logger.warning("  not enough: %s", plan["remedy"])
    return plan


def earlier_adapters(stage: LoadingSpecification, models: list[Path], upstream: list[TrainedSpecification]) -> Earlier:
    """The adapters that are merged into the models a stage starts from, once the stages before it have run.

    Args:
        stage: that is planned.
        models, upstream: as in `plan_from_files`.

    Raises:
        UserError: a specification is missing, or a model's adapters are damaged.
    """
    known = {(each.stage, each.id): each for each in upstream}

    def merged_before(start: tuple[str, str], model: Path) -> tuple[EarlierAdapters, ...]:
        if start[0] == "model":
            return stored_adapters(model)
        if start not in known:
            raise UserError(
                f"--upstream: the spec.yaml of {' '.join(start)} is missing; give results/{'/'.join(start)}/spec.yaml"
            )
        before = known[start]
        trained = before.settings.actor if isinstance(before.settings, ResolvedPpo) else before.settings
        own = EarlierAdapters(trained.lora_dim, trained.lora_module_name)
        return merged_before(before.upstream.start, model) + ((own,) if own.rank else ())

    roles = zip(ROLES[stage.stage], stage.upstream.starts, models, strict=True)
    return {role: merged_before(start, model) for role, start, model in roles}


def refusal(plan: StagePlan) -> str:
    """Why a stage is refused, and what would help.

    Args:
        plan: of a stage that does not fit its device.
    """
    device, upper = plan["device"], plan["upper_device"]
    assert device is not None and upper is not None  # else nothing would have been judged
    steps = "; ".join(entry["name"] for entry in plan["advice"]) or "none"
    return (
        f"{plan['stage']} {plan['id']}: needs up to {upper / GIB:.1f} GiB of a device in phase "
        f"{plan['peak']['phase']}, {device['name']} has {device['capacity'] / GIB:.1f} GiB. Steps that do not change "
        f"the result (`memory.on_misfit: adapt` takes them): {steps}"
        + (f". They are not enough: {plan['remedy']}" if plan["remedy"] else "")
    )
