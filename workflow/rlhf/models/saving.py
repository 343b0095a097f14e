"""Files of a trained model: a plain Hugging Face folder, and its adapters as a PEFT folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import TaskType
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from rlhf.config.stages import PpoSettings, SftSettings
from rlhf.files import read_json, write_json, write_text
from rlhf.models.lora import is_adapter
from rlhf.models.merged import MergedAdapters, write_merged
from rlhf.runtime.folders import atomic_directory


def write_model(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_shard_size: str,
    generation: GenerationConfig | None,
    card: str,
    adapters: MergedAdapters | None = None,
) -> None:
    """Write a plain Hugging Face folder, whole or not at all: safetensors, tokenizer and card.

    Where adapters were merged, the configuration says float32, so that a loader that asks it rounds nothing.

    Args:
        model: names the architecture; its own weights are not looked at, and may be partitioned.
        weights: names of the plain model -> whole weights, tied ones the same tensor.
        tokenizer: saved beside the weights.
        folder: appears with all its files; an older one is replaced.
        max_shard_size: largest weight file, such as `5GB`; more weights are cut into numbered files with an index.
        generation: how answers are to be sampled; None for a model that does not generate.
        card: text of README.md.
        adapters: those that were merged into the weights, written to `merged_adapters/`.
    """
    with atomic_directory(folder) as beside:
        model.save_pretrained(beside, state_dict=dict(weights), max_shard_size=max_shard_size)
        _correct_count(beside / SAFE_WEIGHTS_INDEX_NAME, model)
        if adapters:
            write_merged(beside, adapters)
            write_json(beside / CONFIG_NAME, read_json(beside / CONFIG_NAME) | {"dtype": "float32"})
        tokenizer.save_pretrained(beside)
        if generation is not None:
            generation.save_pretrained(beside)
        write_text(beside / "README.md", card)


def _correct_count(index: Path, model: PreTrainedModel) -> None:
    """Transformers counts the parameters that this process holds, adapters among them: not those in the files."""
    if not index.exists():
        return
    content = read_json(index)
    content["metadata"]["total_parameters"] = sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for name, parameter in model.named_parameters()
        if not is_adapter(name)
    )
    write_json(index, content)


def write_adapter(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    adapted: Any,
    folder: Path,
    base: str,
    revision: str | None = None,
) -> None:
    """Write a PEFT folder with everything that was trained, whole or not at all.

    Where embeddings, norms or biases were trained beside the LoRA matrices, or a score head, their weights are in the
    file too, because the matrices alone would be another model. `PeftModel.from_pretrained` loads them all.

    Args:
        model: the adapted model; a score head of its is among the weights.
        weights: everything that was trained, by PEFT's names.
        adapted: what `add_lora` returned for the model; not None.
        folder: appears with all its files; an older one is replaced.
        base: the model that the adapter belongs to, as written into the configuration: its name on a hub, where others
            find it, or its folder in the project.
        revision: of the base on a hub; None: the newest.
    """
    config = copy.copy(adapted.peft_config["default"])
    config.base_model_name_or_path, config.revision, config.inference_mode = base, revision, True
    config.task_type = TaskType.SEQ_CLS if hasattr(model, "score") else TaskType.CAUSAL_LM
    config.target_modules = sorted(config.target_modules)  # as a set it would have another order in each process
    if hasattr(model, "score"):
        config.modules_to_save = ["score"]
    with atomic_directory(folder) as beside:
        save_file(weights, beside / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(beside))


def sampling_config(model: PreTrainedModel, settings: SftSettings | PpoSettings) -> GenerationConfig:
    """Generation settings of a policy: its own distribution, without top-k and top-p, which PPO does not use either.

    Args:
        model: names the special tokens.
        settings: of the stage; those of PPO have a temperature and a longest answer.
    """
    sampled = settings if isinstance(settings, PpoSettings) else None
    return GenerationConfig(
        do_sample=True,
        temperature=sampled.temperature if sampled else 1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampled.max_answer_seq_len if sampled else None,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        bos_token_id=model.config.bos_token_id,
    )
