"""What the models say about sampled answers, on every process alike. Shape suffixes are those of `rlhf.models.scores`.

Used by the loop, which scores a rollout before it trains on it, and by the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlhf.data.batching import MicroBatch
from rlhf.models.scores import answer_logits, inference_device, token_entropy
from rlhf.ppo.kl import token_kl
from rlhf.ppo.reward import RewardScorer
from rlhf.ppo.samples import Partition, Rectangle, Samples
from rlhf.training.distributed import Remember, anew, device, gather_rows


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What policy, reference and value model say about answer tokens.

    All are [samples, answer width] float32 and 0 behind the end of an answer.

    Attributes:
        logprobs: log-probability of each token under the policy, before it is trained.
        ref_logprobs: the same under the SFT model.
        entropy: of the distribution that the policy draws each token from, in nats.
        values: of the state before each token; None without a value model.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor | None

    def apart(self, lengths: np.ndarray) -> list[TokenScores]:
        """Each sample alone, cut to the length of its answer: tensors [length] on the CPU."""
        tables = self._each(lambda table: table.float().cpu())

        def row(place: int, length: int) -> TokenScores:
            return tables._each(lambda table: table[place, :length].clone())

        return [row(place, length) for place, length in enumerate(lengths.tolist())]

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenScores:
        return TokenScores(
            logprobs=change(self.logprobs),
            ref_logprobs=change(self.ref_logprobs),
            entropy=change(self.entropy),
            values=None if self.values is None else change(self.values),
        )


@dataclass(frozen=True, kw_only=True)
class Scores(TokenScores):
    """What the models say about a whole rollout before they are trained on it, on the CPU.

    Attributes:
        score: of the reward model at the last token of each answer, [samples] float32.
        partition: by which it was scored, and by which alone it is trained on.
    """

    score: Tensor
    partition: Partition


@dataclass(frozen=True)
class Scorers:
    """The models that score a rollout, all in evaluation mode."""

    policy: nn.Module
    reference: Callable[[Rectangle], Tensor]  # logits of the answer tokens under the SFT model, [tokens, vocab]
    critic: nn.Module | None
    reward: RewardScorer


def score_samples(
    samples: Samples,
    partition: Partition,
    scorers: Scorers,
    temperature: float,
    between: Callable[[], None] = lambda: None,
) -> Scores:
    """Old log-probabilities, reference log-probabilities, old values and scores of a rollout.

    Args:
        samples: the rollout.
        partition: how it will be trained on.
        scorers: the models.
        temperature: sampling temperature; log-probabilities are of softmax(logits / temperature).
        between: called before each micro-batch.
    """
    lengths = samples.answer_lengths

    @torch.no_grad()
    def score(rows: np.ndarray) -> list[tuple[TokenScores, float]]:
        part = samples.rectangle(rows, scorers.reward.pad_id, inference_device(scorers.policy))
        tokens = token_scores(part, scorers, temperature).apart(lengths[rows])
        return list(zip(tokens, scorers.reward(samples, rows, part).tolist(), strict=True))

    found = gather_rows(partition.scored, score, between)
    tokens = [one for one, _ in found]
    values = [one.values for one in tokens if one.values is not None]
    return Scores(
        logprobs=pad_sequence([one.logprobs for one in tokens], batch_first=True),
        ref_logprobs=pad_sequence([one.ref_logprobs for one in tokens], batch_first=True),
        entropy=pad_sequence([one.entropy for one in tokens], batch_first=True),
        values=pad_sequence(values, batch_first=True) if values else None,
        score=torch.tensor([score for _, score in found]),
        partition=partition,
    )


def token_scores(part: Rectangle, scorers: Scorers, temperature: float) -> TokenScores:
    """What the models say about the answer tokens of some samples, [batch, answer width] on the models' device."""
    logits_NV = answer_logits(scorers.policy, *part.inputs) / temperature
    logprobs_BT, entropy_BT = part.logprobs(logits_NV), part.table(token_entropy(logits_NV))
    del logits_NV  # a vocabulary wide: not kept beside those of the reference
    ref_BT = part.logprobs(scorers.reference(part) / temperature)
    values_BT = None if scorers.critic is None else answer_values(scorers.critic, part)
    return TokenScores(logprobs=logprobs_BT, ref_logprobs=ref_BT, entropy=entropy_BT, values=values_BT)


def answer_values(critic: nn.Module, part: Rectangle) -> Tensor:
    """The value of the state before each answer token, which is read one position to its left.

    Args:
        critic: `TokenScorer`, or an engine around one.
        part: some samples.

    Returns:
        [batch, answer width] float32, 0 behind an answer.
    """
    values_BS: Tensor = critic(part.input_ids, part.attention_mask)
    return part.table(values_BS.flatten()[part.predicting])


def answer_scores(
    samples: Samples, shares: Sequence[MicroBatch], reward: RewardScorer, remember: Remember[float] = anew
) -> list[float]:
    """Score of each answer at its last token, on every process.

    Args:
        samples: prompts and answers.
        shares: this process's micro-batches.
        reward: the reward model, in evaluation mode.
        remember: keeps the scores of each micro-batch, and knows those of an earlier attempt.
    """

    @torch.no_grad()
    def score(rows: np.ndarray) -> list[float]:
        scores_B: list[float] = reward(samples, rows, samples.rectangle(rows, reward.pad_id, device())).tolist()
        return scores_B

    return gather_rows(shares, remember(score))


def answer_logprobs(
    samples: Samples,
    shares: Sequence[MicroBatch],
    model: nn.Module,
    pad_id: int,
    temperature: float,
    remember: Remember[np.ndarray] = anew,
) -> list[np.ndarray]:
    """Log-probability of each token of each answer under one model, in nats: [length] float32 each, on every process.

    Args:
        samples: prompts and answers.
        shares: this process's micro-batches.
        model: in evaluation mode.
        pad_id: filler id.
        temperature: sampling temperature; log-probabilities are of softmax(logits / temperature).
        remember: keeps those of each micro-batch, and knows those of an earlier attempt.
    """
    lengths = samples.answer_lengths

    @torch.no_grad()
    def logprobs(rows: np.ndarray) -> list[np.ndarray]:
        part = samples.rectangle(rows, pad_id, device())
        found_BT = part.logprobs(answer_logits(model, *part.inputs) / temperature).cpu().numpy()
        return [row_T[:length].copy() for row_T, length in zip(found_BT, lengths[rows], strict=True)]

    return gather_rows(shares, remember(logprobs))


def answer_kl(logprobs: Sequence[np.ndarray], ref_logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """Log pi(answer) - log pi_ref(answer) of answers that pi has drawn, in nats: [samples] float64.

    Its mean over answers estimates KL(pi || pi_ref).

    Args:
        logprobs: of each token under pi, [length] each.
        ref_logprobs: the same under pi_ref.
    """
    pairs = zip(logprobs, ref_logprobs, strict=True)
    tensors = [(torch.from_numpy(own).double(), torch.from_numpy(other).double()) for own, other in pairs]
    return np.array([float(token_kl(own, other, torch.ones_like(own), "k1").sum()) for own, other in tensors])
