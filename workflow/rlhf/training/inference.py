"""Models that are not trained: whole on every process, or partitioned over all of them (ZeRO-3, no optimizer)."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

from rlhf.config.stages import EvaluateExecution, Optimization
from rlhf.training.distributed import device
from rlhf.training.engine import EngineSettings, partitioned_loading


def inference_config(config: dict[str, Any] | None, offload: bool = False) -> dict[str, Any] | None:
    """The DeepSpeed configuration of a model that only computes.

    Args:
        config: with ZeRO-3, of an engine that trains; None: without.
        offload: the partitions rest in host memory.

    Returns:
        None where the model needs no engine.
    """
    if config is None:
        return None
    zero = {key: value for key, value in config["zero_optimization"].items() if not key.startswith("offload_")}
    return config | {"zero_optimization": zero | ({"offload_param": {"device": "cpu"}} if offload else {})}


def evaluation_config(execution: EvaluateExecution, dtype: str) -> dict[str, Any] | None:
    """The DeepSpeed configuration of a model that is evaluated; None where each process has it whole."""
    size, overrides = execution.per_device_eval_batch_size, execution.deepspeed_config
    settings = EngineSettings(execution.zero_stage, dtype, size, False, False, overrides)
    return inference_config(partitioned_loading(Optimization(), settings))


def for_inference(model: nn.Module, config: dict[str, Any] | None, stays_on_host: bool = False) -> nn.Module:
    """A model that computes without gradients, on this process's device or in an engine.

    Args:
        model: as it was loaded; with an engine, in partitions.
        config: of `inference_config`.
        stays_on_host: without an engine, leave it in host memory.
    """
    model.eval().requires_grad_(False)
    if config is None:
        return model if stays_on_host else model.to(device())
    engine: nn.Module = deepspeed.initialize(model=model, config=config)[0]
    engine.eval()  # returns nothing
    return engine


def plain(model: nn.Module) -> Any:
    """The model inside an engine, or the model itself where there is none."""
    return getattr(model, "module", model)


def release(model: nn.Module) -> None:
    """Take what DeepSpeed has hung on a model off it, so that it goes with the last reference to it.

    ZeRO-3 (deepspeed 0.19.8) never takes a model from its stack of modules, where the engine puts it. It remembers too,
    for all engines together, which parameters to release after which module, and so holds the modules.
    """
    if isinstance(model, deepspeed.DeepSpeedEngine):
        model.destroy()
        own, stack = set(model.module.modules()), parameter_offload.FWD_MODULE_STACK
        stack[:] = [module for module in stack if module not in own]
        _remembered().cache_clear()


def _remembered() -> Any:
    """The cache of the class, in the method that its decorator wraps."""
    wrapper = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    return inspect.getclosurevars(wrapper).nonlocals["func"]


def empty_cache() -> None:
    """Give the memory of models that nobody refers to any more back to the device, for the next one."""
    gc.collect()
    get_accelerator().empty_cache()
