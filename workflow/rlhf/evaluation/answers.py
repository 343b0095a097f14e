"""Sampled answers to unseen prompts: of the SFT model, of the policy, and one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf.config.specification import ResolvedAnswers, ResolvedBaseline
from rlhf.data.corpus import Corpus
from rlhf.evaluation.found import ANSWERS, NUMBERS, arrays
from rlhf.evaluation.frame import AnswersEvaluation, Model, require_same_prompts, unseen_prompts
from rlhf.evaluation.statistics import best_of_n, best_of_n_kl, best_of_n_win_rate, mean_and_error, win_rate
from rlhf.functions import load_judge
from rlhf.models.loading import load_config, load_tokenizer
from rlhf.models.tokenizers import decode
from rlhf.ppo.experience import judge_samples
from rlhf.ppo.reward import reward_scorer
from rlhf.ppo.rollout import generate
from rlhf.ppo.samples import Answer, Samples
from rlhf.ppo.scoring import answer_kl, answer_logprobs, answer_scores
from rlhf.records.evaluation import BaselineEvaluation, BestOfN, PpoEvaluation
from rlhf.records.samples import AnswerSample, BaselineSample, SamplePair, read_baseline_samples
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import Remember
from rlhf.training.inference import plain


@dataclass(frozen=True)
class JudgedSamples:
    """Answers with their scores by the reward model and, where there is one, the gold reward; arrays are [answers]."""

    samples: Samples
    texts: list[str]
    score: np.ndarray
    gold: np.ndarray | None

    def sample(self, index: int) -> AnswerSample:
        """One answer with its scores, as samples.jsonl has it."""
        answer = self.samples.answers[index]
        sample: AnswerSample = {
            "text": self.texts[index],
            "score": float(self.score[index]),
            "length": len(answer.ids),
            "finished": answer.finished,
        }
        if self.gold is not None:
            sample["gold"] = float(self.gold[index])
        return sample


def sample_baseline(evaluation: AnswersEvaluation[ResolvedBaseline], sft: Path, reward: Path) -> None:
    """Sample the SFT model: for each unseen prompt one answer that the policy is compared with, and `best_of_n` more.

    From those the best by the reward model is chosen, which is what PPO has to beat at equal KL.

    Args:
        evaluation: specification and paths.
        sft: model folder of the SFT stage.
        reward: model folder of the reward stage.
    """
    corpus, chosen = unseen_prompts(evaluation)
    count = evaluation.settings.best_of_n
    rows, tokenizer = np.repeat(chosen, count + 1), load_tokenizer(sft)
    with evaluation.model(lambda: evaluation.policy(sft)) as model:
        samples = _sample(evaluation, model, corpus, rows, "baseline")
    judged = _judge(evaluation, samples, reward, tokenizer, corpus)
    shape = (len(chosen), count + 1)
    score = judged.score.reshape(shape)
    gold = None if judged.gold is None else judged.gold.reshape(shape)
    prompts = decode(tokenizer, [corpus.prompt(row) for row in chosen], special=True)
    seen = corpus.is_seen()[chosen]
    lines: list[BaselineSample] = []
    for place, prompt in enumerate(prompts):
        answers = [judged.sample(place * (count + 1) + number) for number in range(count + 1)]
        known = bool(seen[place])
        lines.append({"row": int(chosen[place]), "prompt": prompt, "seen_in_train": known, "answers": answers})
    result: BaselineEvaluation = {
        "prompts": len(chosen),
        "seen_in_train": int(seen.sum()),
        "n": count,
        "score_mean": float(score[:, 0].mean()),
        "score_std": float(score[:, 0].std()),
        "gold_mean": None if gold is None else float(gold[:, 0].mean()),
        "response_length": float(samples.answer_lengths.mean()),
        "eos_share": float(samples.finished.mean()),
        "best_of_n": [_best_of(n, score, gold) for n in _powers_of_two(count)],
    }
    evaluation.write(result, lines)


def evaluate_ppo(
    evaluation: AnswersEvaluation[ResolvedAnswers], policy: Path, sft: Path, reward: Path, baseline: Path
) -> None:
    """Answers of the policy against the SFT model's first answers to the same prompts.

    Args:
        evaluation: specification and paths.
        policy: model folder of the PPO stage.
        sft: model folder of the SFT stage, for KL.
        reward: model folder of the reward stage.
        baseline: samples.jsonl of the baseline stage.

    Raises:
        UserError: the baseline answers other prompts.
    """
    corpus, chosen = unseen_prompts(evaluation)
    before = read_baseline_samples(baseline)
    require_same_prompts(before, chosen.tolist(), baseline)
    with evaluation.model(lambda: evaluation.policy(policy)) as model:
        samples = _sample(evaluation, model, corpus, chosen, "policy")
        logprobs = _logprobs(evaluation, model, samples, corpus, "policy")
    with evaluation.model(lambda: evaluation.policy(sft)) as model:
        ref_logprobs = _logprobs(evaluation, model, samples, corpus, "reference")
    kl, kl_error = mean_and_error(answer_kl(logprobs, ref_logprobs))
    judged = _judge(evaluation, samples, reward, load_tokenizer(policy), corpus)
    first = [row["answers"][0] for row in before]
    sft_score = np.array([answer["score"] for answer in first])
    own = [judged.sample(place) for place in range(len(before))]
    rate, rate_error = score_win_rate(own, first)
    result: PpoEvaluation = {
        "prompts": len(chosen),
        "seen_in_train": int(corpus.is_seen()[chosen].sum()),
        "win_rate": rate,
        "win_rate_se": rate_error,
        "score_mean": float(judged.score.mean()),
        "sft_score_mean": float(sft_score.mean()),
        "kl": kl,
        "kl_se": kl_error,
        "response_length": float(samples.answer_lengths.mean()),
        "sft_response_length": float(np.mean([answer["length"] for answer in first])),
        "eos_share": float(samples.finished.mean()),
        "sft_eos_share": float(np.mean([answer["finished"] for answer in first])),
    }
    if judged.gold is not None:
        sft_gold = np.array([answer["gold"] for answer in first])
        result["gold_win_rate"], result["gold_win_rate_se"] = win_rate(judged.gold, sft_gold)
        result["gold_mean"], result["sft_gold_mean"] = float(judged.gold.mean()), float(sft_gold.mean())
    evaluation.write(result, [_pair(*pair) for pair in zip(before, own, strict=True)])


def score_win_rate(own: Sequence[AnswerSample], others: Sequence[AnswerSample]) -> tuple[float, float | None]:
    """How often an answer has a higher score than another one to the same prompt, and the standard error.

    Equal answers tie, though they were scored in other micro-batches and their scores differ by rounding.
    """
    scores = [
        (theirs["score"] if _key(ours) == _key(theirs) else ours["score"], theirs["score"])
        for ours, theirs in zip(own, others, strict=True)
    ]
    return win_rate(*zip(*scores, strict=True))


def _key(answer: AnswerSample) -> tuple[str, int, bool]:
    """What equal answers have in common; a special token that is drawn shows in the length alone."""
    return answer["text"], answer["length"], answer["finished"]


def _pair(row: BaselineSample, policy: AnswerSample) -> SamplePair:
    sft = row["answers"][0]
    pair: SamplePair = {
        "row": row["row"],
        "prompt": row["prompt"],
        "seen_in_train": row["seen_in_train"],
        "sft": sft["text"],
        "policy": policy["text"],
        "sft_score": sft["score"],
        "policy_score": policy["score"],
        "sft_length": sft["length"],
        "policy_length": policy["length"],
        "sft_finished": sft["finished"],
        "policy_finished": policy["finished"],
    }
    if "gold" in policy:
        pair["sft_gold"], pair["policy_gold"] = sft["gold"], policy["gold"]
    return pair


def _sample(
    evaluation: AnswersEvaluation[ResolvedAnswers],
    model: Model,
    corpus: Corpus,
    rows: np.ndarray,
    purpose: str,
) -> Samples:
    """An answer to the prompt of each row; one that stands several times gets as many answers."""
    settings = evaluation.settings
    prompts = [corpus.prompt(row) for row in rows]
    seeds = [derive_seed(evaluation.seed, purpose, place) for place in range(len(rows))]
    limits = (evaluation.batch_size, settings.max_answer_seq_len, settings.temperature)

    def sampled(model: nn.Module, remember: Remember[Answer]) -> list[Answer]:
        return generate(plain(model), prompts, seeds, *limits, remember=remember).answers

    return Samples(prompts, evaluation.passed("answers", "generate", model, sampled, ANSWERS), rows.tolist())


def _logprobs(
    evaluation: AnswersEvaluation[ResolvedAnswers], model: Model, samples: Samples, corpus: Corpus, name: str
) -> list[np.ndarray]:
    """Log-probabilities of the answers' tokens under a model, [length] float32 each."""
    shares, temperature = samples.shares(evaluation.batch_size), evaluation.settings.temperature

    def scored(model: nn.Module, remember: Remember[np.ndarray]) -> list[np.ndarray]:
        return answer_logprobs(samples, shares, model, corpus.pad_token_id, temperature, remember)

    return evaluation.passed(f"logprobs-{name}", "score", model, scored, arrays(np.float32))


def _judge(
    evaluation: AnswersEvaluation[ResolvedAnswers],
    samples: Samples,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
) -> JudgedSamples:
    """What the reward model in a folder and the gold reward say of answers; `tokenizer` made their ids."""
    positions, own = getattr(load_config(folder), "max_position_embeddings", None), load_tokenizer(folder)
    shares = samples.shares(evaluation.batch_size)

    def scored(model: nn.Module, remember: Remember[float]) -> list[float]:
        return answer_scores(samples, shares, reward_scorer(model, positions, own, tokenizer, corpus), remember)

    with evaluation.model(lambda: evaluation.reward_model(folder)) as model:
        score = np.array(evaluation.passed("scores", "score", model, scored, NUMBERS))
    texts = decode(tokenizer, [answer.ids for answer in samples.answers])
    judge = load_judge(evaluation.settings.gold_reward)
    gold = None if judge is None else np.array(judge_samples(samples, tokenizer, judge))
    return JudgedSamples(samples, texts, score, gold)


def _best_of(n: int, score: np.ndarray, gold: np.ndarray | None) -> BestOfN:
    """Best-of-n by the reward model among the candidates; column 0 is the answer it is compared with."""
    candidates = score[:, 1:]
    row: BestOfN = {
        "n": n,
        "kl": best_of_n_kl(n),
        "score": best_of_n(candidates, candidates, n),
        "win_rate": best_of_n_win_rate(candidates, candidates, score[:, 0], n),
    }
    if gold is not None:
        row["gold"] = best_of_n(candidates, gold[:, 1:], n)
        row["gold_win_rate"] = best_of_n_win_rate(candidates, gold[:, 1:], gold[:, 0], n)
    return row


def _powers_of_two(limit: int) -> list[int]:
    return [2**k for k in range(limit.bit_length())]
