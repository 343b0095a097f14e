"""Evaluation of the SFT model and of the reward model on unseen rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from rlhf.data.batching import micro_batches
from rlhf.data.comparisons import compare
from rlhf.data.corpus import Corpus
from rlhf.evaluation.found import NUMBERS, arrays
from rlhf.evaluation.frame import RewardStage, SftStage
from rlhf.evaluation.preferences import (
    JudgedPairs,
    accuracy,
    by_length_difference,
    by_longer,
    by_subset,
    calibration,
    gold_agreement,
    longer_accuracy,
)
from rlhf.functions import Judge, load_judge
from rlhf.models.loading import load_config, load_tokenizer
from rlhf.models.tokenizers import decode
from rlhf.records.evaluation import GoldAgreement, RewardEvaluation
from rlhf.training.distributed import Remember, anew, gather_rows, rank, world_size
from rlhf.training.frame import keep_usable
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import mean_loss


def evaluate_sft(evaluation: SftStage, model_folder: Path) -> None:
    """Write the SFT model's loss on unseen rows, in nats per answer token, and its perplexity."""
    objective = AnswerLikelihood()
    corpus = evaluation.paths.corpus("eval", "sft")
    dropped = keep_usable(corpus, objective, evaluation.settings.max_seq_len, "sft")

    @torch.no_grad()
    def losses(model: nn.Module, remember: Remember[float]) -> list[float]:
        return [mean_loss(model, objective, corpus, evaluation.batch_size, remember=remember)["loss"]]

    with evaluation.model(lambda: evaluation.policy(model_folder)) as model:
        (loss,) = evaluation.passed("losses", "score", model, losses, NUMBERS)
    evaluation.write(
        {
            "loss": loss,
            "perplexity": math.exp(loss),
            "tokens": int(corpus.lengths("chosen").sum()),
            "rows": len(corpus),
            "rows_too_long": dropped.too_long,
            "seen_in_train": int(corpus.is_seen().sum()),
        }
    )


def evaluate_reward(evaluation: RewardStage, model_folder: Path) -> None:
    """Write how well the reward model agrees with unseen preferences, and with the gold reward where there is one."""
    objective = GroupPreference()
    corpus = evaluation.paths.corpus("eval", "reward")
    dropped = keep_usable(corpus, objective, evaluation.settings.max_seq_len, "reward")

    def scores(model: nn.Module, remember: Remember[np.ndarray]) -> list[np.ndarray]:
        return unseen_scores(model, corpus, evaluation.batch_size, remember)

    with evaluation.model(lambda: evaluation.reward_model(model_folder, normalised=False)) as model:
        raw = np.concatenate(evaluation.passed("scores", "score", model, scores, arrays(np.float64)))
    config = load_config(model_folder)
    result: RewardEvaluation = {
        **reward_report(judged_pairs(corpus, raw), raw, config.reward_mean, config.reward_std),
        **_against_gold(corpus, raw, model_folder, load_judge(evaluation.settings.gold_reward)),
        "rows_too_long": dropped.too_long,
        "rows_of_equal_answers": dropped.equal,
        "seen_in_train": int(corpus.is_seen().sum()),
    }
    evaluation.write(result)


def unseen_scores(
    model: nn.Module, corpus: Corpus, batch_size: int, remember: Remember[np.ndarray] = anew
) -> list[np.ndarray]:
    """Scores of the answers of each row: [answers of the row] float64 each, on every process.

    Args:
        model: `TokenScorer`, or an engine around one.
        corpus: rows.
        batch_size: rows computed at once.
        remember: keeps the scores of each micro-batch, and knows those of an earlier attempt.
    """
    objective = GroupPreference()

    @torch.no_grad()
    def scores(rows: np.ndarray) -> list[np.ndarray]:
        counts = [len(corpus.judgements(row)) for row in rows]
        parts = torch.split(objective.scores(model, corpus, rows), counts)
        return [part.double().cpu().numpy() for part in parts]

    lengths = objective.lengths(corpus)
    shares = micro_batches(np.arange(len(corpus)), lengths, batch_size, rank(), world_size())
    return gather_rows(shares, remember(scores))


def judged_pairs(corpus: Corpus, scores: np.ndarray) -> JudgedPairs:
    """All comparisons in a corpus, each with the scores of its two answers.

    Args:
        corpus: preferences.
        scores: of all answers of all rows, [answers].
    """
    rows = range(len(corpus))
    pairs = compare(corpus, np.arange(len(corpus)))
    lengths = np.concatenate([corpus.judgements(row)["length"] for row in rows])
    subsets = np.array([corpus.subset(row) for row in rows], dtype=np.object_)
    return JudgedPairs(
        chosen=scores[pairs.better],
        rejected=scores[pairs.worse],
        length_difference=lengths[pairs.better] - lengths[pairs.worse],
        group=pairs.group,
        subset=subsets[pairs.group],
    )


def reward_report(pairs: JudgedPairs, raw: np.ndarray, mean: float, std: float) -> RewardEvaluation:
    """What evaluation.json says of a reward model.

    Args:
        pairs: comparisons, with raw scores.
        raw: raw scores of all answers, each once, [answers].
        mean, std: normalisation stored with the model; scores and margins are reported with it, probabilities
            without.
    """
    table, error = calibration(pairs)
    return {
        "prompts": len(np.unique(pairs.group)),
        **cast(RewardEvaluation, accuracy(pairs)),
        "longer_accuracy": longer_accuracy(pairs),
        "score_mean": float((raw.mean() - mean) / std),
        "score_std": float(raw.std() / std),
        "chosen_mean": float((pairs.chosen.mean() - mean) / std),
        "rejected_mean": float((pairs.rejected.mean() - mean) / std),
        "margin_mean": float(pairs.margin.mean() / std),
        "calibration_error": error,
        "calibration": table,
        "by_subset": by_subset(pairs),
        "by_longer": by_longer(pairs),
        "by_length_difference": by_length_difference(pairs),
    }


def _against_gold(corpus: Corpus, scores: np.ndarray, folder: Path, judge: Judge | None) -> GoldAgreement:
    if judge is None:
        return {}
    tokenizer, rows = load_tokenizer(folder), range(len(corpus))
    prompts = decode(tokenizer, [corpus.prompt(row) for row in rows for _ in corpus.judgements(row)])
    answers = decode(tokenizer, [answer for row in rows for answer in corpus.answers(row)])
    gold = np.array([judge(prompt, answer, True) for prompt, answer in zip(prompts, answers, strict=True)])
    return gold_agreement(judged_pairs(corpus, scores), judged_pairs(corpus, gold), scores, gold)
