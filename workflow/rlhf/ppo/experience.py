"""A rollout ready for training: rewards, advantages and returns, and what it looks like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.config.stages import PpoSettings
from rlhf.functions import Judge
from rlhf.models.tokenizers import decode
from rlhf.ppo.advantages import (
    final_score,
    generalised_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    scale_rewards,
    token_rewards,
    whiten,
)
from rlhf.ppo.kl import token_kl
from rlhf.ppo.samples import Samples
from rlhf.ppo.scoring import Scores


@dataclass(frozen=True)
class Experience:
    """A rollout ready for training; tensors are [samples, answer width] float32 on the CPU.

    Attributes:
        samples: prompts and answers.
        scores: what the models said about them before this training.
        mask: 1 on answer tokens, the EOS included, and 0 behind an answer's end.
        advantages: what the policy learns from.
        returns: what the value model learns; None without one.
        kl_coefficient: of the penalty in this rollout's rewards, or in the loss.
    """

    samples: Samples
    scores: Scores
    mask: Tensor
    advantages: Tensor
    returns: Tensor | None
    kl_coefficient: float


def make_experience(samples: Samples, scores: Scores, settings: PpoSettings, kl_coefficient: float) -> Experience:
    """Rewards, advantages and returns of a rollout.

    Args:
        samples: prompts and answers.
        scores: what the models say about them.
        settings: `PpoSettings`.
        kl_coefficient: of this rollout.
    """
    mask = (torch.arange(int(samples.answer_lengths.max())) < torch.from_numpy(samples.answer_lengths)[:, None]).float()
    rewards = _rewards(samples, scores, mask, settings, kl_coefficient)
    returns = None
    if scores.values is not None:
        advantages, returns = generalised_advantages(rewards, scores.values, mask, settings.gamma, settings.gae_lambda)
    else:
        compare = {"rloo": leave_one_out_advantages, "grpo": group_relative_advantages}
        advantages = compare[settings.advantage_estimator](rewards, mask, settings.answers_per_prompt)
    if settings.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Experience(samples, scores, mask, advantages, returns, kl_coefficient)


def _rewards(samples: Samples, scores: Scores, mask: Tensor, settings: PpoSettings, kl_coefficient: float) -> Tensor:
    finished = torch.from_numpy(samples.finished)
    score = final_score(scores.score, finished, settings.reward_clip, settings.missing_eos_penalty)
    penalty = kl_coefficient * token_kl(scores.logprobs, scores.ref_logprobs, mask, settings.kl_estimator)
    rewards = token_rewards(penalty if settings.kl_in == "reward" else torch.zeros_like(mask), score, mask)
    return scale_rewards(rewards, mask) if settings.whiten_rewards else rewards


def rollout_kl(experience: Experience) -> float:
    """Estimate of KL(pi || pi_SFT) per answer, in nats: the mean of log pi(answer) - log pi_SFT(answer)."""
    scores = experience.scores
    return float(token_kl(scores.logprobs, scores.ref_logprobs, experience.mask, "k1").sum(1).mean())


def rollout_metrics(experience: Experience) -> dict[str, float]:
    """Metrics of a rollout before it is trained on: means over answers, or over all their tokens where per token."""
    samples, scores, mask = experience.samples, experience.scores, experience.mask
    tokens = float(mask.sum())
    return {
        "score": float(scores.score.mean()),
        "score_std": float(scores.score.std(correction=0)),
        "kl": rollout_kl(experience),
        "kl_coefficient": experience.kl_coefficient,
        "entropy": float((scores.entropy * mask).sum()) / tokens,
        "response_length": float(samples.answer_lengths.mean()),
        "eos_share": float(samples.finished.mean()),
        "advantage_mean": float((experience.advantages * mask).sum()) / tokens,
        **_value_metrics(experience),
    }


def _value_metrics(experience: Experience) -> dict[str, float]:
    if experience.returns is None or experience.scores.values is None:
        return {}
    valid = experience.mask.bool()
    returns, values = experience.returns[valid], experience.scores.values[valid]
    spread = returns.var(correction=0).clamp_min(1e-8)
    return {"explained_variance": float(1 - (returns - values).var(correction=0) / spread)}


def judge_samples(samples: Samples, tokenizer: PreTrainedTokenizerBase, judge: Judge) -> list[float]:
    """Gold reward of each sample, which the judge reads as text, special tokens left out."""
    prompts = decode(tokenizer, samples.prompts)
    answers = decode(tokenizer, [answer.ids for answer in samples.answers])
    return [judge(*item) for item in zip(prompts, answers, samples.finished.tolist(), strict=True)]
