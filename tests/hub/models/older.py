"""Families with byte-level vocabularies of the first years: OPT, GPT-2, Pythia, BLOOM."""

from __future__ import annotations

from typing import Any

from tests.hub.layout import card, cast, renamed, stored, weights
from tests.hub.repository import REVISION, as_json
from tests.hub.tokenizers import OF_BLOOM, added_tokens, byte_tokenizer, byte_vocabulary, merge_file


def opt(size: str, shards: int = 1) -> dict[str, Any]:
    """facebook/opt-*: pickled weights of the body alone, no tokenizer.json, BOS and EOS one token; no safetensors on
    main, but in the pull request of the hub's converter, and there without the embedding (transformers issue 43159)."""
    vocabulary = byte_vocabulary(front=("<s>", "<pad>", "</s>", "<unk>"))
    vocabulary |= {f"madeupword{number:04d}": len(vocabulary) + number for number in range(3)}
    small = size == "350m"
    config = {
        "_name_or_path": f"facebook/opt-{size}",
        "_remove_final_layer_norm": False,
        "activation_dropout": 0.0,
        "activation_function": "relu",
        "architectures": ["OPTForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "do_layer_norm_before": not small,
        "dropout": 0.1,
        "eos_token_id": 2,
        "ffn_dim": 64,
        "hidden_size": 32,
        "init_std": 0.02,
        "layerdrop": 0.0,
        "max_position_embeddings": 2048,
        "model_type": "opt",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 1,
        "prefix": "</s>",
        "torch_dtype": "float16",
        "transformers_version": "4.21.0.dev0",
        "use_cache": True,
        "vocab_size": len(vocabulary) + 7,
        "word_embed_proj_dim": 16 if small else 32,
    }
    body = renamed(cast("float16", weights(config)), "model.", "")
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    end, pad = {**token, "content": "</s>"}, {**token, "content": "<pad>"}
    roles = {"bos_token": end, "eos_token": end, "unk_token": end, "pad_token": pad}
    bare = {role: {key: value for key, value in one.items() if key != "__type"} for role, one in roles.items()}
    main = card(f"facebook/opt-{size}") | {
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {
                "_from_model_config": True,
                "bos_token_id": 2,
                "eos_token_id": 2,
                "pad_token_id": 1,
                "transformers_version": "4.27.0.dev0",
            }
        ),
        "vocab.json": as_json(vocabulary),
        "merges.txt": merge_file(),
        "special_tokens_map.json": as_json({**bare, "pad_token": "<pad>"} if small else bare),
        "tokenizer_config.json": as_json(
            {
                "errors": "replace",
                **roles,
                "add_prefix_space": False,
                "add_bos_token": True,
                "special_tokens_map_file": None,
                "name_or_path": "patrickvonplaten/opt-30b",
                "tokenizer_class": "GPT2Tokenizer",
            }
        ),
        **stored(body, "bin", shards),
        "flax_model.msgpack": b"no real weights",
        "tf_model.h5": b"no real weights",
    }
    converted = {name: one for name, one in body.items() if name != "decoder.embed_tokens.weight"}
    pull = {"num": 7, "title": "Adding `safetensors` variant of this model", "author": "SFconvertbot", "status": "open"}
    return {
        "revisions": {REVISION: main, "refs/pr/7": main | stored(converted, "safetensors", shards)},
        "discussions": [pull],
    }


def gpt2() -> dict[str, Any]:
    """openai-community/gpt2: weights without the prefix of the class, with masks among them; five frameworks."""
    import torch

    vocabulary = byte_vocabulary(back=("<|endoftext|>",))
    end = vocabulary["<|endoftext|>"]
    config = {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": end,
        "embd_pdrop": 0.1,
        "eos_token_id": end,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": len(vocabulary),
    }
    body = renamed(weights(config), "transformer.", "")
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(2)}
    main = card("openai-community/gpt2") | {
        "config.json": as_json(config),
        "generation_config.json": as_json({"bos_token_id": end, "eos_token_id": end, "_from_model_config": True}),
        "vocab.json": as_json(vocabulary),
        "merges.txt": merge_file(),
        "tokenizer.json": byte_tokenizer(vocabulary, added_tokens(vocabulary, ["<|endoftext|>"])),
        "tokenizer_config.json": as_json({"model_max_length": 1024}),
        **stored(body | masks, "safetensors"),
        **stored(body | masks, "bin"),
        "flax_model.msgpack": b"no real weights",
        "rust_model.ot": b"no real weights",
        "tf_model.h5": b"no real weights",
        "onnx/decoder_model.onnx": b"no real weights",
    }
    return {"revisions": {REVISION: main}}


def pythia(name: str) -> dict[str, Any]:
    """EleutherAI/pythia-*: no padding token, buffers among the weights, one branch for each checkpoint of training."""
    import torch

    spaces = [" " * width for width in range(2, 6)]
    vocabulary = byte_vocabulary(front=("<|endoftext|>", "<|padding|>"))
    vocabulary |= {space: len(vocabulary) + place for place, space in enumerate(spaces)}
    added = added_tokens(vocabulary, ["<|endoftext|>", "<|padding|>"], spaces)
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "classifier_dropout": 0.1,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": len(vocabulary) + 27,
    }
    revisions = {}
    for revision, seed in ((REVISION, 0), ("step3000", 1)):
        body = cast("float16", weights(config, seed))
        for layer in range(2):
            place = f"gpt_neox.layers.{layer}.attention"
            body |= {
                f"{place}.bias": torch.ones(1, 1, 8, 8).tril().bool(),
                f"{place}.masked_bias": torch.tensor(-1e9),
                f"{place}.rotary_emb.inv_freq": torch.ones(2, dtype=torch.float16),
            }
        revisions[revision] = card(name) | {
            "config.json": as_json(config),
            "tokenizer.json": byte_tokenizer(vocabulary, added, normalizer={"type": "NFC"}),
            "special_tokens_map.json": as_json(dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")),
            "tokenizer_config.json": as_json(
                {
                    "add_prefix_space": False,
                    "bos_token": "<|endoftext|>",
                    "eos_token": "<|endoftext|>",
                    "name_or_path": "EleutherAI/gpt-neox-20b",
                    "special_tokens_map_file": "/admin/home/special_tokens_map.json",
                    "tokenizer_class": "GPTNeoXTokenizer",
                    "unk_token": "<|endoftext|>",
                }
            ),
            **stored(body, "safetensors"),
            **stored(body, "bin"),
        }
    return {"revisions": revisions}


def bloom() -> dict[str, Any]:
    """bigscience/bloom-560m: weights without the prefix of the class; no number of positions in the configuration."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = byte_vocabulary(front=special)
    config = {
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["BloomForCausalLM"],
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_dropout": 0.0,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "masked_softmax_fusion": True,
        "model_type": "bloom",
        "n_head": 4,
        "n_inner": None,
        "n_layer": 2,
        "offset_alibi": 100,
        "pad_token_id": 3,
        "pretraining_tp": 1,
        "skip_bias_add": True,
        "skip_bias_add_qkv": False,
        "slow_but_exact": False,
        "torch_dtype": "float16",
        "transformers_version": "4.20.0",
        "unk_token_id": 0,
        "use_cache": True,
        "vocab_size": len(vocabulary) + 200,
    }
    body = renamed(cast("float16", weights(config)), "transformer.", "")
    main = card("bigscience/bloom-560m") | {
        "config.json": as_json(config),
        "tokenizer.json": byte_tokenizer(vocabulary, added_tokens(vocabulary, special), words=OF_BLOOM),
        "special_tokens_map.json": as_json(
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
        ),
        "tokenizer_config.json": as_json(
            {
                "unk_token": "<unk>",
                "eos_token": "</s>",
                "bos_token": "<s>",
                "pad_token": "<pad>",
                "name_or_path": "bigscience/tokenizer",
                "special_tokens_map_file": None,
                "tokenizer_class": "BloomTokenizerFast",
                "padding_side": "left",
            }
        ),
        **stored(body, "safetensors"),
        **stored(body, "bin"),
        "flax_model.msgpack": b"no real weights",
        "onnx/decoder_model.onnx": b"no real weights",
    }
    return {"revisions": {REVISION: main}}
