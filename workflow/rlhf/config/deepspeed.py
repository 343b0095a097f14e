"""The user's own DeepSpeed settings: a mapping or a JSON file, checked against what the trainer drives itself."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from rlhf.config.section import Values

# Settings that say how DeepSpeed runs: they change time and memory, and what it logs.
FREE = frozenset(
    {
        *("aio", "checkpoint", "data_types", "disable_python_gc", "elasticity", "use_node_local_storage"),
        *("bf16", "fp16", "zero_optimization"),
        *("communication_data_type", "disable_allgather", "gradient_predivide_factor", "prescale_gradients"),
        *("comms_logger", "dump_state", "flops_profiler", "log_level", "memory_breakdown", "steps_per_print", "timers"),
        *("csv_monitor", "tensorboard", "wandb", "wall_clock_breakdown"),
    }
)

_CHANGES = "it changes what is computed, and an execution key must not"
_FOREIGN = "the trainer has no such parallelism"
DRIVEN = {
    "train_batch_size": "it follows from the stage's batch size",
    "train_micro_batch_size_per_gpu": "set per_device_train_batch_size (ppo: per_device_training_batch_size)",
    "gradient_accumulation_steps": "it follows from the global and the per-device batch size",
    "managed_gradient_accumulation": "the trainer drives accumulation",
    "data_types.grad_accum_dtype": "gradients are added up in fp32 already",
    "gradient_clipping": "it changes the result; set gradient_clipping of the stage",
    "gradient_allreduce_op": "losses are divided by the count of the whole step already",
    "optimizer": "the trainer brings AdamW; set learning_rate, weight_decay and adam_* of the stage",
    "scheduler": "the trainer brings the schedule; set lr_scheduler_type and num_warmup_steps of the stage",
    "zero_allow_untested_optimizer": "the trainer brings the optimizer",
    "zero_force_ds_cpu_optimizer": "the trainer brings the optimizer",
    "amp": "set dtype of the stage",
    "torch_autocast": "set dtype of the stage",
    "activation_checkpointing": "it has no effect on these models; set gradient_checkpointing of the stage",
    "hybrid_engine": "it has no effect on these models",
    "autotuning": "it starts trainings of its own",
    "pipeline": _FOREIGN,
    "tensor_parallel": _FOREIGN,
    "expert_parallel": _FOREIGN,
    "sequence_parallel_size": _FOREIGN,
    "compression_training": _CHANGES,
    "weight_quantization": _CHANGES,
    "quantize_training": _CHANGES,
    "curriculum_learning": _CHANGES,
    "data_efficiency": _CHANGES,
    "progressive_layer_drop": _CHANGES,
    "sparse_attention": _CHANGES,
    "zero_optimization.zero_quantized_weights": _CHANGES,
    "zero_optimization.zero_quantized_nontrainable_weights": _CHANGES,
    "zero_optimization.zero_quantized_gradients": _CHANGES,
    "zero_optimization.zenflow": _CHANGES,
    "bf16.bf16_master_weights_and_grads": _CHANGES,
    "fp16.fp16_master_weights_and_grads": _CHANGES,
    "zero_optimization.compute_grad_norm": "the gradient norm is reported",
}


def _read(value: Any) -> Any:
    """The content of a JSON file, or the value itself where it is no path.

    Raises:
        ValueError: the file is missing, or holds no JSON mapping.
    """
    if not isinstance(value, str):
        return value
    try:
        content = json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no readable file ({error.strerror}); paths are relative to {Path.cwd()}") from None
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"the file holds a {type(content).__name__}, not a mapping")
    return content


# A file is read with the configuration: what a stage gets, and its manifest records, is the content.
DeepSpeedSettings = Annotated[Values, BeforeValidator(_read, json_schema_input_type=Values | str)]


def deepspeed_mistakes(settings: dict[str, Any], dtype: str, zero_stages: Collection[int]) -> Iterator[str]:
    """What is wrong with DeepSpeed settings of a stage.

    Args:
        settings: the user's settings.
        dtype: of the stage: `fp32`, `bf16` or `fp16`.
        zero_stages: of the stage's engines.

    Yields:
        One text for each mistake, beginning with the key.
    """
    for key in settings:
        if key not in DRIVEN and key not in FREE:
            near = difflib.get_close_matches(key, [*FREE, *DRIVEN], n=1)
            yield f"{key} is no setting that DeepSpeed knows" + (f"; did you mean {near[0]!r}?" if near else "")
    for key, value in _flat(settings):
        driven = next((name for name in (key, key.split(".")[0]) if name in DRIVEN), None)
        if driven:
            yield f"{key} is refused: {DRIVEN[driven]}"
        elif value == "auto":
            yield f"{key}: 'auto' is for another trainer; give a value, or leave the key out"
    yield from _zero(settings.get("zero_optimization", {}), zero_stages)
    for name in ("fp16", "bf16"):
        if name != dtype and settings.get(name, {}).get("enabled", name in settings):
            yield f"{name} contradicts dtype, which is {dtype}"
    if dtype != "fp32" and not settings.get(dtype, {}).get("enabled", True):
        yield f"{dtype}.enabled: false contradicts dtype, which is {dtype}"


def _zero(zero: dict[str, Any], zero_stages: Collection[int]) -> Iterator[str]:
    if "stage" in zero and set(zero_stages) != {zero["stage"]}:
        yield f"zero_optimization.stage ({zero['stage']}) contradicts the stage's zero_stage; set that"
    elif zero and not any(zero_stages):
        yield "zero_optimization has no effect with ZeRO 0; set zero_stage to 1, 2 or 3"


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with a dot for each level, and the values that are no mappings; what is driven is not opened."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and path not in DRIVEN:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value
