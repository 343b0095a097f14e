"""A rollout: sampling answers whose randomness belongs to the sample, and all of them on every process.

Answers are short compared with weights, so each process samples its share and receives all of it. What follows
(whitening, minibatches) is then the same computation everywhere, whatever the number of processes. Shape suffixes are
those of `rlhf.models.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rlhf.data.batching import micro_batches, pad
from rlhf.models.scores import inference_device, token_logprobs
from rlhf.ppo.samples import Answer, Samples
from rlhf.training.distributed import Remember, anew, gather_rows, rank, world_size
from rlhf.training.weights import is_partitioned

TINY = torch.finfo(torch.float32).tiny


def generate(
    model: PreTrainedModel,
    prompts: list[np.ndarray],
    seeds: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    between: Callable[[], None] = lambda: None,
    rows: Sequence[int] = (),
    remember: Remember[Answer] = anew,
) -> Samples:
    """One answer per prompt, each process sampling its share.

    Args:
        model: policy in evaluation mode.
        prompts: prompt ids.
        seeds: one per prompt.
        batch_size: prompts per generation batch.
        max_new_tokens: longest answer, EOS included.
        temperature: sampling temperature.
        between: called before each generation batch.
        rows: of the prompts in their corpus, where a reward model may ask for them.
        remember: keeps the answers of each generation batch, and knows those of an earlier attempt.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    synced = world_size() > 1 and is_partitioned(model)  # whole models need not wait for each other at every token

    def draw(rows: np.ndarray) -> list[Answer]:
        return sample_answers(
            model,
            [prompts[row] for row in rows],
            [seeds[row] for row in rows],
            max_new_tokens,
            temperature,
            synced=synced,
        )

    shares = micro_batches(np.arange(len(prompts)), lengths, batch_size, rank(), world_size())
    return Samples(prompts, gather_rows(shares, remember(draw), between), rows)


class GumbelNoise(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers: its classes are Any
    """Turns greedy search into sampling: argmax(logits / T + Gumbel noise) is a draw from softmax(logits / T).

    Each row has its own random stream, so an answer does not depend on the batch, or the process, it is drawn in.

    Args:
        seeds: one per row.
        temperature: T.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Noisy scores [batch, vocab]; remembers the log-probability [batch] of the token they make greedy."""
        logits_BV = scores.float() / self._temperature
        uniform_BV = torch.stack([torch.rand(logits_BV.shape[1], generator=stream) for stream in self._streams])
        gumbel_BV = -torch.log(-torch.log(uniform_BV.clamp_min(TINY)))
        noisy_BV = logits_BV + gumbel_BV.to(logits_BV.device)
        self.logprobs.append(token_logprobs(logits_BV, noisy_BV.argmax(-1)))
        return noisy_BV


@torch.no_grad()
def sample_answers(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    synced: bool = False,
) -> list[Answer]:
    """Sample one answer per prompt from softmax(logits / temperature): no top-k, no top-p, no penalties.

    Args:
        model: causal language model in evaluation mode; its configuration names the EOS and padding ids.
        prompts: prompt ids, of any lengths.
        seeds: one per prompt.
        max_new_tokens: longest answer, EOS included.
        temperature: sampling temperature.
        synced: keep generating until all processes are done: under ZeRO-3 every token gathers weights from all of them.

    Returns:
        One answer per prompt.
    """
    config = model.config
    padded = pad(prompts, config.pad_token_id, "left")
    device = inference_device(model)
    noise = GumbelNoise(seeds, temperature)
    sequences_BS = model.generate(
        input_ids=torch.from_numpy(padded.input_ids).to(device),
        attention_mask=torch.from_numpy(padded.attention_mask).to(device),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
        ),
        logits_processor=LogitsProcessorList([noise]),
        synced_gpus=synced,
    )
    drawn_BT = sequences_BS[:, padded.input_ids.shape[1] :].cpu().numpy()
    logprobs_BT = torch.stack(noise.logprobs, dim=1).cpu().numpy()
    return [_cut(ids, logprobs, config.eos_token_id) for ids, logprobs in zip(drawn_BT, logprobs_BT, strict=True)]


def _cut(ids: np.ndarray, logprobs: np.ndarray, eos_token_id: int) -> Answer:
    """A row as an answer: what follows its first EOS was drawn for other rows of the batch that had not ended."""
    ends = np.flatnonzero(ids == eos_token_id)
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return Answer(ids[:length].copy(), logprobs[:length].copy(), bool(len(ends)))
