"""The forecast of any stage that loads a model, and the three numbers that follow from it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from rlhf.config.stages import (
    EvaluateExecution,
    JobExecution,
    PpoExecution,
    PpoSettings,
    RewardSettings,
    SftSettings,
    SupervisedExecution,
)
from rlhf.errors import UserError, first_line
from rlhf.memory.blueprint import EarlierAdapters
from rlhf.memory.devices import Device, DeviceMemory, device_memory, slack
from rlhf.memory.host import HostMemory, host_memory
from rlhf.memory.tracker import LOGITS
from rlhf.models.merged import read_merged
from rlhf.planning.evaluation import EvaluationSettings, forecast_evaluation
from rlhf.planning.ppo import forecast_ppo
from rlhf.planning.supervised import Forecast, forecast_supervised
from rlhf.planning.traces import Traces

Settings = SftSettings | RewardSettings | PpoSettings | EvaluationSettings
Earlier = dict[str, tuple[EarlierAdapters, ...]]  # role of a model that a stage starts from -> adapters merged into it
ROLES = {  # kind of stage -> the models that it loads, as its specification names where they start
    "sft": ("model",),
    "reward": ("model",),
    "ppo": ("policy", "reward"),
    "evaluate_sft": ("policy",),
    "evaluate_reward": ("reward",),
    "baseline": ("policy", "reward"),
    "evaluate_ppo": ("policy", "reference", "reward"),
}


def read_config(path: Path) -> PreTrainedConfig:
    """The configuration of a model folder, or a config.json itself; weights are not needed.

    Raises:
        UserError: there is none, or transformers does not know the model.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no model folder and no config.json")
    try:
        return AutoConfig.from_pretrained(file, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: not a model configuration ({first_line(error)})") from None


def forecast(
    settings: Settings,
    execution: JobExecution,
    configs: dict[str, PreTrainedConfig],
    traces: Traces,
    earlier: Earlier,
) -> Forecast:
    """Memory of one process of a stage.

    Args:
        settings: of the stage.
        execution: how it runs.
        configs: by the roles of `ROLES`.
        traces: dry runs of this stage.
        earlier: by the same roles; one without adapters may be absent.
    """
    if isinstance(execution, EvaluateExecution):
        assert isinstance(settings, EvaluationSettings)
        return forecast_evaluation(settings, execution, configs, traces, earlier)
    if isinstance(settings, PpoSettings):
        assert isinstance(execution, PpoExecution)
        return forecast_ppo(settings, execution, configs["policy"], configs["reward"], traces, earlier)
    assert isinstance(execution, SupervisedExecution) and isinstance(settings, SftSettings | RewardSettings)
    return forecast_supervised(settings, execution, configs["model"], traces, earlier.get("model", ()))


def stored_adapters(path: Path) -> tuple[EarlierAdapters, ...]:
    """The adapters merged into the model of a folder; none where it is a config.json.

    Raises:
        UserError: their file is damaged.
    """
    found: dict[tuple[int, int], set[str]] = {}
    for name, changes in read_merged(path).items():
        for number, change in enumerate(changes):
            found.setdefault((number, change.a.shape[0]), set()).add(name)
    return tuple(EarlierAdapters(rank, modules=frozenset(found[number, rank])) for number, rank in sorted(found))


def on_device(found: Forecast, device: Device | None, execution: JobExecution) -> DeviceMemory:
    """What a process needs of its device; on the CPU, the tensors and nothing beside them."""
    allocated = found.largest.total
    if execution.gpus_per_node == 0:
        return device_memory(allocated, 0.0, 0)
    processes = execution.nodes * execution.gpus_per_node
    stages = [model.engine.zero_stage for model in found.models]
    share = slack(stages, generates=len(found.models) > 1)  # so do all stages of several models
    logits = max(amount for (_, kind), amount in [*found.largest.bytes.items(), (("", LOGITS), 0)] if kind == LOGITS)
    context = device.context if device else Device("", 0).context
    return device_memory(allocated, share, context, 1 if processes > 1 else 0, logits)


def on_host(found: Forecast, execution: JobExecution) -> HostMemory:
    """Host memory of a node."""
    processes, cuda = max(1, execution.gpus_per_node), execution.gpus_per_node > 0
    if found.one_at_a_time:
        each = [host_memory([model], found.parts, processes, False, cuda, delivers=False) for model in found.models]
        return max(each, key=lambda host: host.node)
    return host_memory(found.models, found.parts, processes, found.accumulates, cuda)
