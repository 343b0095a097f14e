"""Name -> how its repository is made; 5 GB of weights are a few KB here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.hub.models.code import chatglm, falcon, glm4, phi2, phi3
from tests.hub.models.llama import llama2, llama3, smollm2
from tests.hub.models.older import bloom, gpt2, opt, pythia
from tests.hub.models.turns import gemma, mistral, qwen

MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "facebook/opt-125m": lambda: opt("125m"),
    "facebook/opt-350m": lambda: opt("350m"),
    "facebook/opt-1.3b": lambda: opt("1.3b"),
    "facebook/opt-6.7b": lambda: opt("6.7b", 2),
    "facebook/opt-13b": lambda: opt("13b", 3),
    "facebook/opt-66b": lambda: opt("66b", 4),
    "openai-community/gpt2": gpt2,
    "gpt2": lambda: {"moved_to": "openai-community/gpt2"},
    "EleutherAI/pythia-70m": lambda: pythia("EleutherAI/pythia-70m"),
    "meta-llama/Llama-2-7b-hf": lambda: llama2("meta-llama/Llama-2-7b-hf"),
    "meta-llama/Llama-2-7b-chat-hf": lambda: llama2("meta-llama/Llama-2-7b-chat-hf", chat=True),
    "meta-llama/Llama-3.2-1B": lambda: llama3("meta-llama/Llama-3.2-1B"),
    "meta-llama/Llama-3.2-1B-Instruct": lambda: llama3("meta-llama/Llama-3.2-1B-Instruct", chat=True),
    "Qwen/Qwen2.5-0.5B": lambda: qwen("Qwen/Qwen2.5-0.5B", "qwen2", chat=False),
    "Qwen/Qwen2.5-0.5B-Instruct": lambda: qwen("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", chat=True),
    "Qwen/Qwen3-0.6B": lambda: qwen("Qwen/Qwen3-0.6B", "qwen3", chat=True),
    "google/gemma-2-2b": lambda: gemma("google/gemma-2-2b", "gemma2", chat=False),
    "google/gemma-2-2b-it": lambda: gemma("google/gemma-2-2b-it", "gemma2", chat=True),
    "google/gemma-3-1b-it": lambda: gemma("google/gemma-3-1b-it", "gemma3_text", chat=True),
    "mistralai/Mistral-7B-v0.1": lambda: mistral("mistralai/Mistral-7B-v0.1", chat=False),
    "mistralai/Mistral-7B-v0.3": lambda: mistral("mistralai/Mistral-7B-v0.3", chat=False),
    "mistralai/Mistral-7B-Instruct-v0.3": lambda: mistral("mistralai/Mistral-7B-Instruct-v0.3", chat=True),
    "bigscience/bloom-560m": bloom,
    "tiiuae/falcon-7b": lambda: falcon("tiiuae/falcon-7b"),
    "tiiuae/falcon-rw-1b": lambda: falcon("tiiuae/falcon-rw-1b", pickled_only=True),
    "microsoft/phi-2": phi2,
    "microsoft/Phi-3-mini-4k-instruct": phi3,
    "HuggingFaceTB/SmolLM2-135M": lambda: smollm2("HuggingFaceTB/SmolLM2-135M", chat=False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": lambda: smollm2("HuggingFaceTB/SmolLM2-135M-Instruct", chat=True),
    "zai-org/glm-4-9b-chat-hf": glm4,
    "THUDM/glm-4-9b-chat-hf": lambda: {"moved_to": "zai-org/glm-4-9b-chat-hf"},
    "zai-org/chatglm3-6b": chatglm,
    "THUDM/chatglm3-6b": lambda: {"moved_to": "zai-org/chatglm3-6b"},
}
