"""Families that came with code of their own, most of which transformers has by now."""

from __future__ import annotations

from typing import Any

from tests.hub.layout import card, cast, safetensors, stored, weights
from tests.hub.models.chat import GLM_CHAT, PHI3_CHAT
from tests.hub.repository import REVISION, as_json
from tests.hub.tokenizers import (
    BYTES,
    OF_FALCON,
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


def falcon(name: str, pickled_only: bool = False) -> dict[str, Any]:
    """tiiuae/falcon-*: code in the repository, although transformers has the model; no padding token."""
    special = [">>TITLE<<", ">>ABSTRACT<<", ">>QUESTION<<", "<|endoftext|>"]
    vocabulary = byte_vocabulary(front=special)
    end = vocabulary["<|endoftext|>"]
    config = {
        "alibi": pickled_only,
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["FalconForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_falcon.FalconConfig",
            "AutoModelForCausalLM": "modeling_falcon.FalconForCausalLM",
        },
        "bias": pickled_only,
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_dropout": 0.0,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "falcon",
        "multi_query": not pickled_only,
        "new_decoder_architecture": False,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "parallel_attn": not pickled_only,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.27.4",
        "use_cache": True,
        "vocab_size": len(vocabulary) + 9,
    }
    body = cast("bfloat16", weights(config))
    code = b"raise RuntimeError('code of the repository was run')\n"
    main = card(name) | {
        "config.json": as_json(config),
        "configuration_falcon.py": code,
        "modeling_falcon.py": code,
        "generation_config.json": as_json({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": end}),
        "tokenizer.json": byte_tokenizer(vocabulary, added_tokens(vocabulary, special), words=OF_FALCON),
        "special_tokens_map.json": as_json({"additional_special_tokens": special[:3], "eos_token": "<|endoftext|>"}),
        "tokenizer_config.json": as_json(
            {
                "add_prefix_space": False,
                "eos_token": "<|endoftext|>",
                "model_input_names": ["input_ids", "attention_mask"],
                "model_max_length": 2048,
                "special_tokens_map_file": None,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        ),
        **stored(body, "bin", 2),
        **({} if pickled_only else stored(body, "safetensors", 2)),
    }
    if not pickled_only:
        return {"revisions": {REVISION: main}}
    other = cast("bfloat16", weights(config, seed=1))  # whoever opens a pull request decides what is in it
    pull = {"num": 3, "title": "Adding `safetensors` variant of this model", "author": "SFconvertbot", "status": "open"}
    return {"revisions": {REVISION: main, "refs/pr/3": main | stored(other, "safetensors", 2)}, "discussions": [pull]}


def phi2() -> dict[str, Any]:
    """microsoft/phi-2: tokens of spaces beside the vocabulary, many more embedding rows than tokens."""
    spaces = [" " * width for width in range(2, 7)]
    vocabulary = byte_vocabulary(back=("<|endoftext|>",))
    plain = dict(vocabulary)
    vocabulary |= {space: len(vocabulary) + place for place, space in enumerate(spaces)}
    added = added_tokens(vocabulary, ["<|endoftext|>"], spaces)
    end = vocabulary["<|endoftext|>"]
    config = {
        "architectures": ["PhiForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "embd_pdrop": 0.0,
        "eos_token_id": end,
        "hidden_act": "gelu_new",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "phi",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "resid_pdrop": 0.1,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.37.0",
        "use_cache": True,
        "vocab_size": len(vocabulary) + 905,
    }
    main = card("microsoft/phi-2") | {
        "config.json": as_json(config),
        "vocab.json": as_json(plain),
        "merges.txt": merge_file(),
        "added_tokens.json": as_json({space: vocabulary[space] for space in spaces}),
        "generation_config.json": as_json({"_from_model_config": True, "bos_token_id": end, "eos_token_id": end}),
        "tokenizer.json": byte_tokenizer(vocabulary, added),
        "special_tokens_map.json": as_json(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")),
        "tokenizer_config.json": as_json(
            {
                "add_prefix_space": False,
                "added_tokens_decoder": decoder_entries(added),
                "bos_token": "<|endoftext|>",
                "clean_up_tokenization_spaces": True,
                "eos_token": "<|endoftext|>",
                "model_max_length": 2048,
                "return_token_type_ids": False,
                "tokenizer_class": "CodeGenTokenizer",
                "unk_token": "<|endoftext|>",
            }
        ),
        **stored(cast("float16", weights(config)), "safetensors", 2),
    }
    return {"revisions": {REVISION: main}}


def phi3() -> dict[str, Any]:
    """microsoft/Phi-3-mini-4k-instruct: code in the repository, padding is the end, turns end with another token."""
    special = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    vocabulary = piece_vocabulary(("<unk>", "<s>", "</s>"), special)
    added = added_tokens(vocabulary, ["<unk>", "<s>", "</s>", *special])
    for token in added:
        token["rstrip"] = token["content"] in special[1:]  # line breaks after them are lost
    ids = [vocabulary[token] for token in special]
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
        },
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": ids[0],
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "original_max_position_embeddings": 4096,
        "pad_token_id": ids[0],
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(vocabulary) + 53,
    }
    code = b"raise RuntimeError('code of the repository was run')\n"
    main = card("microsoft/Phi-3-mini-4k-instruct") | {
        "config.json": as_json(config),
        "configuration_phi3.py": code,
        "modeling_phi3.py": code,
        "added_tokens.json": as_json({token: vocabulary[token] for token in special}),
        "generation_config.json": as_json(
            {
                "_from_model_config": True,
                "bos_token_id": 1,
                "pad_token_id": ids[0],
                "eos_token_id": [ids[0], ids[1], ids[3]],
            }
        ),
        "tokenizer.json": piece_tokenizer(vocabulary, added, None, prefix=True),
        "tokenizer.model": sentencepiece(vocabulary, ["<s>", "</s>"], prefix=True),
        "special_tokens_map.json": as_json(
            {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
        ),
        "tokenizer_config.json": as_json(
            {
                "add_bos_token": False,
                "add_eos_token": False,
                "added_tokens_decoder": decoder_entries(added),
                "bos_token": "<s>",
                "chat_template": PHI3_CHAT,
                "clean_up_tokenization_spaces": False,
                "eos_token": "<|endoftext|>",
                "legacy": False,
                "model_max_length": 4096,
                "pad_token": "<|endoftext|>",
                "padding_side": "left",
                "sp_model_kwargs": {},
                "tokenizer_class": "LlamaTokenizer",
                "unk_token": "<unk>",
                "use_default_system_prompt": False,
            }
        ),
        **stored(cast("bfloat16", weights(config)), "safetensors", 2),
    }
    return {"revisions": {REVISION: main}}


def glm4() -> dict[str, Any]:
    """zai-org/glm-4-9b-chat-hf: two tokens begin each text, nothing ends a turn but the next one's mark, three ends."""
    special = [
        "<|endoftext|>",
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<eop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ]
    vocabulary = byte_vocabulary(back=special)
    added = added_tokens(vocabulary, special)
    ids = {token: vocabulary[token] for token in special}
    config = {
        "architectures": ["GlmForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"], ids["<|observation|>"]],
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "max_position_embeddings": 131072,
        "model_type": "glm",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": ids["<|endoftext|>"],
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.47.0.dev0",
        "use_cache": True,
        "vocab_size": len(vocabulary) + 200,
    }
    post = {
        "type": "Sequence",
        "processors": [{**BYTES, "trim_offsets": False}, begin_with("[gMASK]", vocabulary, "<sop>")],
    }
    main = card("zai-org/glm-4-9b-chat-hf") | {
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {
                "do_sample": True,
                "eos_token_id": config["eos_token_id"],
                "max_length": 128000,
                "pad_token_id": ids["<|endoftext|>"],
                "temperature": 0.8,
                "top_p": 0.8,
            }
        ),
        "tokenizer.json": byte_tokenizer(vocabulary, added, post, THREE_DIGITS),
        "special_tokens_map.json": as_json(
            {"additional_special_tokens": special, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        ),
        "tokenizer_config.json": as_json(
            {
                "added_tokens_decoder": decoder_entries(added),
                "additional_special_tokens": special,
                "chat_template": GLM_CHAT,
                "clean_up_tokenization_spaces": False,
                "do_lower_case": False,
                "eos_token": "<|endoftext|>",
                "model_input_names": ["input_ids", "attention_mask"],
                "model_max_length": 128000,
                "pad_token": "<|endoftext|>",
                "padding_side": "left",
                "remove_space": False,
                "tokenizer_class": "PreTrainedTokenizer",
            }
        ),
        **stored(cast("bfloat16", weights(config)), "safetensors", 2),
    }
    return {"revisions": {REVISION: main}}


def chatglm() -> dict[str, Any]:
    """THUDM/chatglm3-6b: a model that transformers does not have; nothing works without the repository's code."""
    code = b"raise RuntimeError('code of the repository was run')\n"
    config = {
        "_name_or_path": "THUDM/chatglm3-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        },
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "padded_vocab_size": 500,
        "seq_length": 8192,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float16",
    }
    vocabulary = piece_vocabulary(("<unk>", "<s>", "</s>"))
    main = card("THUDM/chatglm3-6b") | {
        "config.json": as_json(config),
        "configuration_chatglm.py": code,
        "modeling_chatglm.py": code,
        "tokenization_chatglm.py": code,
        "quantization.py": code,
        "tokenizer.model": sentencepiece(vocabulary, ["<s>", "</s>"], prefix=True),
        "tokenizer_config.json": as_json(
            {
                "name_or_path": "THUDM/chatglm3-6b",
                "remove_space": False,
                "do_lower_case": False,
                "tokenizer_class": "ChatGLMTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
            }
        ),
        "model.safetensors": safetensors({}),
    }
    return {"revisions": {REVISION: main}}
