"""Files of a trained model: a plain Hugging Face folder, and its adapters as a PEFT folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.models.lora import merged_weights
from rlhf.runtime.files import atomic_directory, write_text


def write_model(
    model: PreTrainedModel,
    adapted: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    max_shard_size: str,
    generation: GenerationConfig | None,
    card: str,
) -> None:
    """Write a plain Hugging Face folder, whole or not at all: safetensors with merged adapters, tokenizer and card.

    Args:
        model: whole on this process; unchanged afterwards.
        adapted: what `add_lora` returned for it.
        tokenizer: saved beside the weights.
        folder: appears with all its files; an older one is replaced.
        max_shard_size: largest weight file, such as `5GB`; more weights are cut into numbered files with an index.
        generation: how answers are to be sampled; None for a model that does not generate.
        card: text of README.md.
    """
    with atomic_directory(folder) as beside:
        with merged_weights(model, adapted) as weights:
            model.save_pretrained(beside, state_dict=weights, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(beside)
        if generation is not None:
            generation.save_pretrained(beside)
        write_text(beside / "README.md", card)


def write_adapter(model: PreTrainedModel, adapted: Any, folder: Path, base: str) -> None:
    """Write a PEFT folder with everything that was trained, whole or not at all.

    Where embeddings, norms or biases were trained beside the LoRA matrices, or a score head, their weights are in the
    file too, because the matrices alone would be another model. `PeftModel.from_pretrained` loads them all.

    Args:
        model: whole on this process.
        adapted: what `add_lora` returned for it; not None.
        folder: appears with all its files; an older one is replaced.
        base: the model that the adapter belongs to, as written into the configuration.
    """
    config = copy.copy(adapted.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)  # as a set it would have another order in each process
    if hasattr(model, "score"):
        config.modules_to_save = ["score"]
    with atomic_directory(folder) as beside:
        save_file(adapter_weights(model), beside / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(beside))


def adapter_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained weights of a model with adapters, by the names that PEFT gives them in a file."""
    return {
        f"base_model.model.{name.replace('.default.', '.')}": parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def sampling_config(model: PreTrainedModel, settings: dict[str, Any]) -> GenerationConfig:
    """Generation settings of a policy: its own distribution, without top-k and top-p, which PPO does not use either.

    Args:
        model: names the special tokens.
        settings: of the stage; those of PPO have a temperature and a longest answer.
    """
    return GenerationConfig(
        do_sample=True,
        temperature=settings.get("temperature", 1.0),
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.get("max_answer_seq_len"),
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        bos_token_id=model.config.bos_token_id,
    )
