"""Evaluation of the SFT model and of the reward model on unseen rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from rlhf.data.batching import micro_batches
from rlhf.data.corpus import Corpus
from rlhf.evaluation.frame import Evaluation, decode
from rlhf.evaluation.statistics import wilson_interval
from rlhf.models.loading import load_policy, load_reward, load_tokenizer
from rlhf.models.scores import TokenScorer
from rlhf.ppo.experience import Judge
from rlhf.training.distributed import device
from rlhf.training.reward import PairPreference, pair_scores
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import mean_loss


def evaluate_sft(evaluation: Evaluation, model_folder: Path) -> None:
    """Loss in nats per answer token and perplexity on unseen rows."""
    objective = AnswerLikelihood()
    corpus = evaluation.paths.corpus("eval", "sft")
    limit = evaluation.settings["max_seq_len"]
    dropped = corpus.keep(objective.lengths(corpus) <= limit, f"sft.max_seq_len: {limit}")
    model = load_policy(model_folder, "fp32").eval().to(device())
    with torch.no_grad():
        loss = mean_loss(model, objective, corpus, evaluation.batch_size)["loss"]
    evaluation.write(
        {
            "loss": loss,
            "perplexity": math.exp(loss),
            "tokens": int(corpus.lengths("chosen").sum()),
            "rows": len(corpus),
            "rows_too_long": dropped,
        }
    )


def evaluate_reward(evaluation: Evaluation, model_folder: Path) -> None:
    """Accuracy with its interval, score statistics, and agreement with the gold reward where there is one."""
    objective = PairPreference()
    corpus = evaluation.paths.corpus("eval", "reward")
    limit = evaluation.settings["max_seq_len"]
    dropped = corpus.keep(objective.lengths(corpus) <= limit, f"reward.max_seq_len: {limit}")
    model = TokenScorer.normalised(load_reward(model_folder, "fp32")).eval().to(device())
    scores = unseen_scores(model, corpus, evaluation.batch_size)
    evaluation.write(
        {
            "rows_too_long": dropped,
            **reward_accuracy(scores, corpus.lengths("chosen"), corpus.lengths("rejected")),
            **_against_gold(scores, corpus, model_folder, evaluation.judge()),
        }
    )


def unseen_scores(model: TokenScorer, corpus: Corpus, batch_size: int) -> np.ndarray:
    """Scores of chosen and rejected answers: [pairs, 2] float64."""
    scores = np.zeros((len(corpus), 2))
    lengths = PairPreference().lengths(corpus)
    with torch.no_grad():
        for micro in micro_batches(np.arange(len(corpus)), lengths, batch_size, rank=0, world_size=1):
            chosen, rejected = pair_scores(model, corpus, micro.rows)
            scores[micro.rows, 0], scores[micro.rows, 1] = chosen.cpu().numpy(), rejected.cpu().numpy()
    return scores


def reward_accuracy(scores: np.ndarray, chosen_lengths: np.ndarray, rejected_lengths: np.ndarray) -> dict[str, float]:
    """Share of pairs ranked right with its 95 % Wilson interval, and score statistics.

    Args:
        scores: [pairs, 2]: chosen, rejected.
        chosen_lengths: tokens of the chosen answers, [pairs].
        rejected_lengths: tokens of the rejected answers, [pairs].
    """
    margin = scores[:, 0] - scores[:, 1]
    right = int((margin > 0).sum())
    low, high = wilson_interval(right, len(margin))
    difference = chosen_lengths - rejected_lengths
    return {
        "pairs": len(margin),
        "accuracy": right / len(margin),
        "accuracy_low": low,
        "accuracy_high": high,
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "chosen_mean": float(scores[:, 0].mean()),
        "rejected_mean": float(scores[:, 1].mean()),
        "margin_mean": float(margin.mean()),
        "longer_accuracy": float(((difference > 0) + 0.5 * (difference == 0)).mean()),
    }


def _against_gold(scores: np.ndarray, corpus: Corpus, folder: Path, judge: Judge | None) -> dict[str, float | None]:
    if judge is None:
        return {}
    tokenizer, rows = load_tokenizer(folder), range(len(corpus))
    prompts = decode(tokenizer, [corpus.prompt(row) for row in rows])
    gold = np.zeros_like(scores)
    for column, field in enumerate((corpus.chosen, corpus.rejected)):
        answers = decode(tokenizer, [field(row) for row in rows])
        gold[:, column] = [judge(prompt, answer, True) for prompt, answer in zip(prompts, answers, strict=True)]
    return gold_agreement(scores, gold)


def gold_agreement(scores: np.ndarray, gold: np.ndarray) -> dict[str, float | None]:
    """Share of pairs that reward model and gold reward rank alike (gold ties left out), and their correlation.

    Args:
        scores: [pairs, 2].
        gold: [pairs, 2].

    Returns:
        Entries are None where they are not defined: only gold ties, or no variation.
    """
    gold_margin, margin = gold[:, 0] - gold[:, 1], scores[:, 0] - scores[:, 1]
    differ = gold_margin != 0
    alike = (margin * gold_margin > 0)[differ]
    varies = gold.std() > 0 and scores.std() > 0
    return {
        "gold_pairs": int(differ.sum()),
        "gold_accuracy": float(alike.mean()) if differ.any() else None,
        "gold_correlation": float(np.corrcoef(scores.ravel(), gold.ravel())[0, 1]) if varies else None,
    }
