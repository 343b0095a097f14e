"""A rollout ready for training: rewards, advantages and returns, and what it looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.ppo.advantages import final_score, generalised_advantages, token_rewards, whiten
from rlhf.ppo.rollout import Samples, Scores

Judge = Callable[[str, str, bool], float]


@dataclass(frozen=True)
class Experience:
    """A rollout ready for training; tensors are [samples, answer width] float32 on the CPU."""

    samples: Samples
    scores: Scores
    mask: Tensor
    advantages: Tensor
    returns: Tensor


def make_experience(samples: Samples, scores: Scores, settings: dict[str, Any]) -> Experience:
    """Rewards, advantages and returns of a rollout."""
    mask = (torch.arange(int(samples.answer_lengths.max())) < torch.from_numpy(samples.answer_lengths)[:, None]).float()
    score = final_score(
        scores.score, torch.from_numpy(samples.finished), settings["reward_clip"], settings["missing_eos_penalty"]
    )
    rewards = token_rewards(scores.logprobs, scores.ref_logprobs, score, mask, settings["kl_coefficient"])
    advantages, returns = generalised_advantages(
        rewards, scores.values, mask, settings["gamma"], settings["gae_lambda"]
    )
    if settings["whiten_advantages"]:
        advantages = whiten(advantages, mask)
    return Experience(samples, scores, mask, advantages, returns)


def rollout_metrics(experience: Experience) -> dict[str, float]:
    """What a rollout looks like before it is trained on."""
    samples, scores, mask = experience.samples, experience.scores, experience.mask
    tokens = float(mask.sum())
    valid = mask.bool()
    returns, values = experience.returns[valid], scores.values[valid]
    spread = returns.var(correction=0)
    return {
        "score": float(scores.score.mean()),
        "score_std": float(scores.score.std(correction=0)),
        "kl": float(((scores.logprobs - scores.ref_logprobs) * mask).sum(1).mean()),
        "entropy": float((scores.entropy * mask).sum()) / tokens,
        "response_length": float(samples.answer_lengths.mean()),
        "eos_share": float(samples.finished.mean()),
        "explained_variance": float(1 - (returns - values).var(correction=0) / spread.clamp_min(1e-8)),
        "advantage_mean": float((experience.advantages * mask).sum()) / tokens,
    }


def judge_samples(samples: Samples, tokenizer: PreTrainedTokenizerBase, judge: Judge) -> list[float]:
    """Gold reward of each sample's text."""
    prompts = tokenizer.batch_decode(samples.prompts, skip_special_tokens=True)
    answers = tokenizer.batch_decode([answer.ids for answer in samples.answers], skip_special_tokens=True)
    return [judge(*item) for item in zip(prompts, answers, samples.finished.tolist(), strict=True)]
