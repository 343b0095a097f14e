"""The same work by plain PyTorch and Hugging Face: what the stages are compared with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf.data.batching import epoch_batches
from rlhf.data.corpus import Corpus
from rlhf.runtime.seeds import derive_seed

IGNORED = -100


def train(
    model: str, tokens: list[str], splits: list[str], batch_size: int, learning_rate: float, seed: int, device: str
) -> list[dict[str, float]]:
    """Supervised fine-tuning on the batches of the stage: fp32 weights, bf16 by autocast, fused AdamW, clipping.

    Returns:
        Seconds and tokens (padding not counted) of each step, and the largest sum of tensors so far.
    """
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    corpus = Corpus([Path(folder) for folder in tokens], [Path(folder) for folder in splits], "train", "sft")
    lengths = corpus.lengths("prompt") + corpus.lengths("chosen")
    order = epoch_batches(corpus.epoch_rows(seed, 0), lengths, batch_size, derive_seed(seed, "order", 0))
    steps = []
    for batch in order:
        start = time.monotonic()
        ids, mask, labels = (part.to(device) for part in _batch(corpus, batch))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            logits = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        float(loss)  # waits for the device, as a line of metrics does
        steps.append({"seconds": time.monotonic() - start, "tokens": int(lengths[batch].sum()), **_peak(device)})
    return steps


def _batch(corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels, right-padded: [rows, seq] int64 each."""
    texts = [(corpus.prompt(row), corpus.chosen(row)) for row in rows]
    shape = len(texts), max(len(prompt) + len(answer) for prompt, answer in texts)
    ids, mask = torch.full(shape, corpus.pad_token_id), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED)
    for place, (prompt, answer) in enumerate(texts):
        end = len(prompt) + len(answer)
        ids[place, :end] = torch.from_numpy(np.concatenate([prompt, answer]))
        labels[place, len(prompt) : end] = ids[place, len(prompt) : end]
        mask[place, :end] = 1
    return ids, mask, labels


def generate(
    model: str, tokens: list[str], splits: list[str], prompts: int, answer: int, device: str
) -> dict[str, float]:
    """Sampling by Hugging Face alone, from the whole distribution, every answer of the full length.

    Returns:
        Seconds and generated tokens of one batch, after a short one that is not counted.
    """
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    corpus = Corpus([Path(folder) for folder in tokens], [Path(folder) for folder in splits], "train", "ppo")
    texts = [corpus.prompt(row) for row in range(prompts)]
    width = max(map(len, texts))
    ids = torch.full((prompts, width), corpus.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :], mask[row, width - len(text) :] = torch.from_numpy(text), 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    for length in (8, answer):
        start = time.monotonic()
        with torch.no_grad():
            network.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                max_new_tokens=length,
                min_new_tokens=length,
                pad_token_id=corpus.pad_token_id,
            ).cpu()
        seconds = time.monotonic() - start
    return {"seconds": seconds, "tokens": prompts * answer, **_peak(device)}


def _peak(device: str) -> dict[str, float]:
    return {"peak_allocated": torch.cuda.max_memory_allocated()} if device == "cuda" else {}
