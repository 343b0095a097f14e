"""What the models say about a rollout, on every process alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.data.batching import MicroBatch
from rlhf.models.scores import answer_logits, inference_device, token_entropy, token_logprobs
from rlhf.ppo.reward import RewardScorer
from rlhf.ppo.rollout import Rectangle, Samples
from rlhf.training.distributed import all_gather


@dataclass(frozen=True)
class Scores:
    """What the frozen copies of the models say about a rollout; [samples, answer width] float32, 0 after the end."""

    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor | None  # None without a value model
    score: Tensor  # [samples]: score of the reward model at the last token


@dataclass(frozen=True)
class Scorers:
    """The models that score a rollout, all in evaluation mode."""

    policy: nn.Module
    reference: Callable[[Rectangle], Tensor]  # logits of the answer tokens under the SFT model, [tokens, vocab]
    critic: nn.Module | None
    reward: RewardScorer


def score_samples(
    samples: Samples,
    shares: list[MicroBatch],
    scorers: Scorers,
    temperature: float,
    between: Callable[[], None] = lambda: None,
) -> Scores:
    """Old log-probabilities, reference log-probabilities, old values and scores of a rollout.

    Args:
        samples: the rollout.
        shares: this process's micro-batches. Taking those of the first PPO epoch makes the first ratio exactly 1.
        scorers: the models.
        temperature: sampling temperature; log-probabilities are of softmax(logits / temperature).
        between: called before each micro-batch.
    """
    own: dict[int, tuple[np.ndarray, float]] = {}
    for micro in shares:
        between()
        part = samples.rectangle(micro.rows, scorers.reward.pad_id, inference_device(scorers.policy))
        with torch.no_grad():
            table = torch.stack(list(_token_scores(part, scorers, temperature)), dim=1).float().cpu().numpy()
            score = scorers.reward(samples, micro.rows, part).tolist()
        if micro.weight:
            own |= dict(zip(micro.rows.tolist(), zip(table, score, strict=True), strict=True))
    found = {row: scored for part in all_gather(own) for row, scored in part.items()}
    tables, final = zip(*(found[row] for row in range(len(samples))), strict=True)
    logprobs, entropy, ref_logprobs, *values = _rectangles(tables, samples.answer_lengths)
    return Scores(logprobs, ref_logprobs, entropy, values[0] if values else None, torch.tensor(final))


def _token_scores(part: Rectangle, scorers: Scorers, temperature: float) -> Iterator[Tensor]:
    """Log-probabilities, entropy, reference log-probabilities and perhaps values, each [batch, answer width]."""
    logits = answer_logits(scorers.policy, *part.inputs) / temperature
    yield part.table(token_logprobs(logits, part.targets))
    yield part.table(token_entropy(logits))
    del logits  # a vocabulary wide: not kept beside those of the reference
    yield part.table(token_logprobs(scorers.reference(part) / temperature, part.targets))
    if scorers.critic is not None:
        yield answer_values(scorers.critic, part)


def answer_values(critic: nn.Module, part: Rectangle) -> Tensor:
    """Values before each action, so read one position to its left: [batch, answer width] float32."""
    values: Tensor = critic(part.input_ids, part.attention_mask)
    return part.table(values.flatten()[part.predicting])


def _rectangles(tables: Sequence[np.ndarray], lengths: np.ndarray) -> Iterator[Tensor]:
    """Cut each sample's table [rows, its batch's width] to its own length; each row becomes [samples, width]."""
    out = np.zeros((len(tables[0]), len(tables), int(lengths.max())), dtype=np.float32)
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        out[:, row, :length] = table[:, :length]
    yield from torch.from_numpy(out)
