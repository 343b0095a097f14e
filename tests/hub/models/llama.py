"""Llama and what was built like it: SmolLM2."""

from __future__ import annotations

from typing import Any

from tests.hub.layout import card, cast, pickled, stored, weights
from tests.hub.models.chat import IM_CHAT, LLAMA2_CHAT, LLAMA3_CHAT
from tests.hub.repository import REVISION, as_json
from tests.hub.tokenizers import (
    BYTES,
    OF_SMOLLM,
    THREE_DIGITS,
    added_tokens,
    begin_with,
    byte_tokenizer,
    byte_vocabulary,
    decoder_entries,
    merge_file,
    piece_tokenizer,
    piece_vocabulary,
    sentencepiece,
)


def llama_config(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
        "use_cache": True,
        "vocab_size": vocabulary,
        **more,
    }


def llama2(name: str, chat: bool = False) -> dict[str, Any]:
    """meta-llama/Llama-2-*: gated, both kinds of weights in shards, rotary buffers among them, no padding token."""
    import torch

    vocabulary = piece_vocabulary(("<unk>", "<s>", "</s>"))
    added = added_tokens(vocabulary, ["<unk>", "<s>", "</s>"])
    config = llama_config(len(vocabulary), bos_token_id=1, eos_token_id=2, _name_or_path=name)
    body = cast("float16", weights(config))
    body |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    main = card(name) | {
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {
                "_from_model_config": True,
                "bos_token_id": 1,
                "do_sample": chat,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "temperature": 0.6,
                "top_p": 0.9,
                "max_length": 4096,
            }
        ),
        "tokenizer.json": piece_tokenizer(vocabulary, added, "<s>", prefix=True),
        "tokenizer.model": sentencepiece(vocabulary, ["<s>", "</s>"], prefix=True),
        "special_tokens_map.json": as_json(
            {
                "bos_token": {**token, "content": "<s>"},
                "eos_token": {**token, "content": "</s>"},
                "unk_token": {**token, "content": "<unk>"},
            }
        ),
        "tokenizer_config.json": as_json(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": {**token, "content": "<s>"},
                "clean_up_tokenization_spaces": False,
                "eos_token": {**token, "content": "</s>"},
                "legacy": False,
                "model_max_length": 1000000000000000019884624838656,
                "pad_token": None,
                "padding_side": "right",
                "sp_model_kwargs": {},
                "tokenizer_class": "LlamaTokenizer",
                "unk_token": {**token, "content": "<unk>"},
            }
            | ({"chat_template": LLAMA2_CHAT} if chat else {})
        ),
        **stored(body, "safetensors", 2),
        **stored(body, "bin", 2),
        "LICENSE.txt": b"a licence\n",
        "USE_POLICY.md": b"a policy\n",
    }
    return {"revisions": {REVISION: main}, "gated": "manual"}


def llama3(name: str, chat: bool = False) -> dict[str, Any]:
    """meta-llama/Llama-3.*: gated, tied, `original/` with a pickled copy, several ends in chat models."""
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ]
    vocabulary = byte_vocabulary(back=special)
    ids = [vocabulary[token] for token in special]
    config = llama_config(
        len(vocabulary),
        bos_token_id=ids[0],
        eos_token_id=[ids[1], ids[6], ids[7]] if chat else ids[1],
        max_position_embeddings=131072,
        num_key_value_heads=2,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        head_dim=8,
        rope_scaling={
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        torch_dtype="bfloat16",
        transformers_version="4.45.0.dev0",
    )
    body = cast("bfloat16", weights(config))
    added = added_tokens(vocabulary, special)
    post = {"type": "Sequence", "processors": [{**BYTES, "trim_offsets": False}, begin_with(special[0], vocabulary)]}
    end = "<|eot_id|>" if chat else "<|end_of_text|>"
    main = card(name) | {
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {
                "bos_token_id": ids[0],
                "do_sample": True,
                "eos_token_id": config["eos_token_id"],
                "temperature": 0.6,
                "top_p": 0.9,
            }
        ),
        "tokenizer.json": byte_tokenizer(vocabulary, added, post, THREE_DIGITS),
        "special_tokens_map.json": as_json({"bos_token": special[0], "eos_token": end}),
        "tokenizer_config.json": as_json(
            {
                "added_tokens_decoder": decoder_entries(added),
                "bos_token": special[0],
                "clean_up_tokenization_spaces": True,
                "eos_token": end,
                "model_input_names": ["input_ids", "attention_mask"],
                "model_max_length": 131072,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
            | ({"chat_template": LLAMA3_CHAT} if chat else {})
        ),
        **stored(body, "safetensors"),
        "original/consolidated.00.pth": pickled({}),
        "original/params.json": as_json({"dim": 32}),
        "original/tokenizer.model": b"no real vocabulary",
        "LICENSE.txt": b"a licence\n",
        "USE_POLICY.md": b"a policy\n",
    }
    return {"revisions": {REVISION: main}, "gated": "manual"}


def smollm2(name: str, chat: bool) -> dict[str, Any]:
    """HuggingFaceTB/SmolLM2-*: in chat models padding is the end, and BOS opens a turn."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    vocabulary = byte_vocabulary(front=special)
    added = added_tokens(vocabulary, special)
    config = llama_config(
        len(vocabulary),
        bos_token_id=1 if chat else 0,
        eos_token_id=2 if chat else 0,
        tie_word_embeddings=True,
        torch_dtype="bfloat16",
        max_position_embeddings=8192,
        num_key_value_heads=2,
        rope_theta=100000,
        rope_interleaved=False,
        is_llama_config=True,
        **({"pad_token_id": 2} if chat else {}),
    )
    end = "<|im_end|>" if chat else "<|endoftext|>"
    begin = "<|im_start|>" if chat else "<|endoftext|>"
    main = card(name) | {
        "config.json": as_json(config),
        "vocab.json": as_json(vocabulary),
        "merges.txt": merge_file(),
        "generation_config.json": as_json(
            {"_from_model_config": True, "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
        ),
        "tokenizer.json": byte_tokenizer(vocabulary, added, words=OF_SMOLLM),
        "special_tokens_map.json": as_json(
            {
                "bos_token": begin,
                "eos_token": end,
                "unk_token": "<|endoftext|>",
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            }
            | ({"pad_token": "<|im_end|>"} if chat else {})
        ),
        "tokenizer_config.json": as_json(
            {
                "add_prefix_space": False,
                "added_tokens_decoder": decoder_entries(added),
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
                "bos_token": begin,
                "clean_up_tokenization_spaces": False,
                "eos_token": end,
                "model_max_length": 8192,
                "tokenizer_class": "GPT2Tokenizer",
                "unk_token": "<|endoftext|>",
                "vocab_size": len(vocabulary),
            }
            | ({"chat_template": IM_CHAT, "pad_token": "<|im_end|>"} if chat else {})
        ),
        **stored(cast("bfloat16", weights(config)), "safetensors"),
        "onnx/model.onnx": b"no real weights",
    }
    return {"revisions": {REVISION: main}}
