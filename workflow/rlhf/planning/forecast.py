"""The forecast of any training stage, and the three numbers that follow from it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from rlhf.config.stages import (
    AnyTrainingExecution,
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
from rlhf.planning.ppo import forecast_ppo
from rlhf.planning.supervised import Forecast, forecast_supervised
from rlhf.planning.traces import Traces

Settings = SftSettings | RewardSettings | PpoSettings
Earlier = dict[str, tuple[EarlierAdapters, ...]]  # role of a model that a stage starts from -> adapters merged into it
ROLES = {"sft": ("model",), "reward": ("model",), "ppo": ("policy", "reward")}


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
    execution: AnyTrainingExecution,
    configs: dict[str, PreTrainedConfig],
    traces: Traces,
    earlier: Earlier,
) -> Forecast:
    """Memory of one process of a stage.

    Args:
        settings: of the stage.
        execution: how it runs.
        configs: `model`; for PPO `policy` and `reward`.
        traces: dry runs of this stage.
        earlier: by the same roles; one without adapters may be absent.
    """
    if isinstance(settings, PpoSettings):
        assert isinstance(execution, PpoExecution)
        return forecast_ppo(settings, execution, configs["policy"], configs["reward"], traces, earlier)
    assert isinstance(execution, SupervisedExecution)
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


def on_device(found: Forecast, device: Device | None, execution: AnyTrainingExecution) -> DeviceMemory:
    """What a process needs of its device; on the CPU, the tensors and nothing beside them."""
    allocated = found.largest.total
    if execution.gpus_per_node == 0:
        return device_memory(allocated, 0.0, 0)
    processes = execution.nodes * execution.gpus_per_node
    stages = [model.engine.zero_stage for model in found.models]
    share = slack(stages, ppo=len(found.models) > 1)
    logits = max(amount for (_, kind), amount in [*found.largest.bytes.items(), (("", LOGITS), 0)] if kind == LOGITS)
    context = device.context if device else Device("", 0).context
    return device_memory(allocated, share, context, 1 if processes > 1 else 0, logits)


def on_host(found: Forecast, execution: AnyTrainingExecution) -> HostMemory:
    """Host memory of a node."""
    processes = max(1, execution.gpus_per_node)
    return host_memory(found.models, found.parts, processes, found.accumulates, execution.gpus_per_node > 0)
