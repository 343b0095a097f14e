"""Qwen, Gemma and Mistral, each with a chat format of its own."""

from __future__ import annotations

from typing import Any

from tests.hub.layout import card, cast, safetensors, stored, weights
from tests.hub.models.chat import GEMMA_CHAT, IM_CHAT, MISTRAL_CHAT, QWEN3_CHAT
from tests.hub.repository import REVISION, as_json
from tests.hub.tokenizers import (
    BYTES,
    ONE_DIGIT,
    added_tokens,
    byte_tokenizer,
    byte_vocabulary,
    decoder_entries,
    merge_file,
    piece_tokenizer,
    piece_vocabulary,
    sentencepiece,
)


def qwen(name: str, model_type: str, chat: bool) -> dict[str, Any]:
    """Qwen/Qwen2.5-* and Qwen3-*: padding is the end of base models; more rows in the embedding than tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>"]
    ordinary = ["<tool_call>", "</tool_call>"] + (["<think>", "</think>"] if model_type == "qwen3" else [])
    vocabulary = byte_vocabulary(back=[*special, *ordinary])
    added = added_tokens(vocabulary, special, ordinary)
    end = vocabulary["<|im_end|>" if chat else "<|endoftext|>"]
    config = {
        "architectures": [f"Qwen{model_type[-1]}ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary["<|endoftext|>"],
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "model_type": model_type,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None if model_type == "qwen3" else 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": len(vocabulary) + 271,
    } | (
        {"head_dim": 8, "attention_bias": False, "rope_scaling": None}
        if model_type == "qwen3"
        else {"use_mrope": False}
    )
    main = card(name) | {
        "LICENSE": b"a licence\n",
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {
                "bos_token_id": vocabulary["<|endoftext|>"],
                "do_sample": True,
                "pad_token_id": vocabulary["<|endoftext|>"],
                "eos_token_id": [end, vocabulary["<|endoftext|>"]],
                "repetition_penalty": 1.1,
                "temperature": 0.7,
                "top_k": 20,
                "top_p": 0.8,
            }
            if chat
            else {"bos_token_id": end, "do_sample": False, "eos_token_id": end, "max_new_tokens": 2048}
        ),
        "vocab.json": as_json(
            {token: place for token, place in vocabulary.items() if token not in [*special, *ordinary]}
        ),
        "merges.txt": merge_file(),
        "tokenizer.json": byte_tokenizer(
            vocabulary, added, {**BYTES, "trim_offsets": False}, ONE_DIGIT, {"type": "NFC"}
        ),
        "tokenizer_config.json": as_json(
            {
                "add_bos_token": False,
                "add_prefix_space": False,
                "added_tokens_decoder": decoder_entries(added),
                "additional_special_tokens": special[1:],
                "bos_token": None,
                "chat_template": QWEN3_CHAT if model_type == "qwen3" else IM_CHAT,
                "clean_up_tokenization_spaces": False,
                "eos_token": "<|im_end|>" if chat else "<|endoftext|>",
                "errors": "replace",
                "model_max_length": 131072,
                "pad_token": "<|endoftext|>",
                "split_special_tokens": False,
                "tokenizer_class": "Qwen2Tokenizer",
                "unk_token": None,
            }
        ),
        **stored(cast("bfloat16", weights(config)), "safetensors"),
    }
    return {"revisions": {REVISION: main}}


def gemma(name: str, model_type: str, chat: bool) -> dict[str, Any]:
    """google/gemma-*: gated, tied, turns and texts end with different tokens; 3 has a token without a row."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    more = ["<image_soft_token>"] if model_type == "gemma3_text" else []
    vocabulary = piece_vocabulary(special, more)
    added = added_tokens(vocabulary, [*special, *more])
    config = {
        "architectures": ["Gemma3ForCausalLM" if more else "Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": [1, 6] if more and chat else 1,
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 8192,
        "model_type": model_type,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 8,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 512,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(vocabulary) - len(more),
    } | (
        {
            "cache_implementation": "hybrid",
            "rope_local_base_freq": 10000,
            "sliding_window_pattern": 6,
            "rope_scaling": None,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        }
        if more
        else {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid"}
    )
    main = card(name) | {
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {
                "bos_token_id": 2,
                "cache_implementation": "hybrid",
                "do_sample": True,
                "eos_token_id": [1, 6] if chat else 1,
                "pad_token_id": 0,
                "top_k": 64,
                "top_p": 0.95,
            }
        ),
        "tokenizer.json": piece_tokenizer(vocabulary, added, "<bos>", prefix=False),
        "tokenizer.model": sentencepiece(vocabulary, special, prefix=False),
        "special_tokens_map.json": as_json(
            {
                "bos_token": "<bos>",
                "eos_token": "<eos>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
                "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
            }
        ),
        "tokenizer_config.json": as_json(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "added_tokens_decoder": decoder_entries(added),
                "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
                "bos_token": "<bos>",
                "clean_up_tokenization_spaces": False,
                "eos_token": "<eos>",
                "model_max_length": 1000000000000000019884624838656,
                "pad_token": "<pad>",
                "sp_model_kwargs": {},
                "spaces_between_special_tokens": False,
                "tokenizer_class": "GemmaTokenizer",
                "unk_token": "<unk>",
                "use_default_system_prompt": False,
            }
            | ({"chat_template": GEMMA_CHAT} if chat else {})
        ),
        **stored(cast("bfloat16", weights(config)), "safetensors", 2),
    }
    return {"revisions": {REVISION: main}, "gated": "manual"}


def mistral(name: str, chat: bool) -> dict[str, Any]:
    """mistralai/Mistral-7B-*: the same weights once more by the names of Mistral's own library, three tokenizers; those
    of v0.1 and v0.2 put a space before each text."""
    old = name.endswith(("v0.1", "v0.2"))
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"]
    vocabulary = piece_vocabulary(special)
    added = added_tokens(vocabulary, special)
    config = {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0",
        "use_cache": True,
        "vocab_size": len(vocabulary),
    }
    body = cast("bfloat16", weights(config))
    other = {f"layers.{place}.weight": one for place, one in enumerate(body.values())}
    main = card(name) | {
        "config.json": as_json(config),
        "params.json": as_json({"dim": 32, "n_layers": 2}),
        "generation_config.json": as_json({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2}),
        "tokenizer.json": piece_tokenizer(vocabulary, added, "<s>", prefix=True, first=not old),
        "tokenizer.model": sentencepiece(vocabulary, special, prefix=True),
        "tokenizer.model.v3": sentencepiece(vocabulary, special, prefix=True),
        "special_tokens_map.json": as_json({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
        "tokenizer_config.json": as_json(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "added_tokens_decoder": decoder_entries(added),
                "bos_token": "<s>",
                "clean_up_tokenization_spaces": False,
                "eos_token": "</s>",
                "legacy": False,
                "model_max_length": 1000000000000000019884624838656,
                "pad_token": None,
                "sp_model_kwargs": {},
                "tokenizer_class": "LlamaTokenizer",
                "unk_token": "<unk>",
            }
            | ({"chat_template": MISTRAL_CHAT} if chat else {})
        ),
        **stored(body, "safetensors", 3),
        "consolidated.safetensors": safetensors(other),
    }
    return {"revisions": {REVISION: main}, "gated": "auto"}
