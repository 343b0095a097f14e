"""What each process computes adds up to the whole, whatever their number; they run in turn, in this one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.data.batching import micro_batches
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.scores import TokenScorer, answer_logits
from rlhf.ppo import checks, mix, rollout, scoring
from rlhf.ppo.checks import unit_ratio_error
from rlhf.ppo.mix import PretrainingMix
from rlhf.ppo.reward import SameTokens
from rlhf.ppo.rollout import generate
from rlhf.ppo.samples import Partition
from rlhf.ppo.scoring import Scorers, score_samples
from rlhf.ppo.statistics import UpdateStatistics
from rlhf.training import distributed, engine, reward, supervised
from rlhf.training.engine import EngineSettings, Trainer
from rlhf.training.reward import GroupPreference, score_statistics
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import mean_loss
from tests.unit.conftest import ListCorpus
from tests.unit.test_training import OPTIMIZATION

PROCESSES = [1, 2, 3, 5]


class _Reached(Exception):
    """A process has come to the collective call, with what it brings."""


def run_all(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, processes: int, function: Callable[[], Any]
) -> list[Any]:
    """The results of a function of this module with one collective call on each of several processes.

    Every process runs up to the call; then, with what all of them brought, to its end.
    """
    brought: list[Any] = []

    def stop(*values: Any) -> Any:
        raise _Reached(values)

    for number in range(processes):
        _become(monkeypatch, module, number, processes, stop, stop)
        with pytest.raises(_Reached) as reached:
            function()
        brought.append(reached.value.args[0])

    def sums(*values: float) -> list[float]:
        return [float(sum(column)) for column in zip(*brought, strict=True)]

    results = []
    for number in range(processes):
        _become(monkeypatch, module, number, processes, lambda value: [values[0] for values in brought], sums)
        results.append(function())
    monkeypatch.undo()
    return results


def _become(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, number: int, processes: int, gather: Any, sums: Any
) -> None:
    faked = {"rank": lambda: number, "world_size": lambda: processes, "all_gather": gather, "all_sum": sums}
    for name, function in faked.items():
        for place in (module, distributed):  # in which `gather_rows` is
            if hasattr(place, name):
                monkeypatch.setattr(place, name, function)


@pytest.fixture
def scorer(gpt2_folder) -> TokenScorer:
    return TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=3, dropout=0.0)).eval()


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("capacity", [None, 40])
def test_mean_loss_is_that_of_all_rows(gpt2_folder, list_corpus, group, monkeypatch, processes, capacity):
    model, objective = load_policy(gpt2_folder, "fp32").eval(), AnswerLikelihood(capacity=capacity)
    with torch.no_grad():
        alone = mean_loss(model, objective, list_corpus, 3)
        together = run_all(monkeypatch, supervised, processes, lambda: mean_loss(model, objective, list_corpus, 3))
    for means in together:
        assert means == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("processes", PROCESSES)
def test_score_statistics_count_every_answer_once(scorer, group_corpus, group, monkeypatch, processes):
    objective = GroupPreference()
    alone = score_statistics(scorer, group_corpus, objective, batch_size=3)
    for found in run_all(monkeypatch, reward, processes, lambda: score_statistics(scorer, group_corpus, objective, 3)):
        assert found == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("processes", PROCESSES)
def test_all_processes_judge_the_ratios_of_all(group, monkeypatch, processes):
    generator = torch.Generator().manual_seed(2)
    tokens = [7, 0, 4, 11, 1][:processes]
    ratios = [1 + 0.1 * torch.randn(count, generator=generator) for count in tokens]
    ranks = itertools.cycle(range(processes))
    errors = (torch.cat(ratios).double() - 1).abs()
    for found in run_all(monkeypatch, checks, processes, lambda: unit_ratio_error(ratios[next(ranks)].split(2))):
        assert found == pytest.approx((float(errors.max()), float(errors.mean())), rel=1e-5)


def prompts() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 50, generator.integers(2, 9)) for _ in range(7)]


@pytest.mark.parametrize("processes", PROCESSES)
def test_every_process_has_the_whole_rollout(gpt2_folder, group, monkeypatch, processes):
    model = load_policy(gpt2_folder, "fp32").eval()

    def sample() -> Any:
        return generate(model, prompts(), list(range(10, 17)), 2, 8, 1.0)

    alone = sample()
    for samples in run_all(monkeypatch, rollout, processes, sample):
        assert [prompt.tolist() for prompt in samples.prompts] == [prompt.tolist() for prompt in prompts()]
        assert [one.ids.tolist() for one in samples.answers] == [one.ids.tolist() for one in alone.answers]


@pytest.mark.parametrize("processes", PROCESSES)
def test_every_process_has_the_scores_of_all_samples_in_their_order(gpt2_folder, scorer, group, monkeypatch, processes):
    model = load_policy(gpt2_folder, "fp32").eval()
    samples = generate(model, prompts(), list(range(10, 17)), 2, 8, 1.0)
    critic = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=4, dropout=0.0)).eval()

    def reference(part: Any) -> torch.Tensor:
        return 0.5 * answer_logits(model, *part.inputs)

    scorers = Scorers(model, reference, critic, SameTokens(scorer, pad_id=0))

    def score() -> Any:
        order = np.random.default_rng(1).permutation(7)
        share = micro_batches(order, samples.lengths, 2, next(ranks), processes)
        return score_samples(samples, Partition([[share]]), scorers, 1.0)

    ranks = itertools.cycle(range(processes))
    together = run_all(monkeypatch, scoring, processes, score)
    whole = Partition([[micro_batches(np.arange(7), samples.lengths, 7, 0, 1)]])
    alone = score_samples(samples, whole, scorers, 1.0)
    for scores in together:
        for name in ("logprobs", "ref_logprobs", "values", "entropy", "score"):
            assert torch.allclose(getattr(scores, name), getattr(alone, name), atol=1e-4), name


@pytest.mark.parametrize("processes", PROCESSES)
def test_mixed_rows_are_the_same_batch_on_all_processes(gpt2_folder, group, monkeypatch, processes):
    """Their weighted losses add up to coefficient times the mean over the answer tokens of the batch."""
    model, corpus = load_policy(gpt2_folder, "fp32").eval(), ListCorpus(12)
    rows, total = [], 0.0
    for number in range(processes):
        _become(monkeypatch, mix, number, processes, None, None)
        mixed = PretrainingMix(corpus, 0.3, rows_per_step=7, micro_size=2, seed=5)
        batch = mixed.next_batch()
        rows += [row for micro in batch.shares if micro.weight for row in micro.rows]
        with torch.no_grad():
            total += float(sum(loss() for loss in mixed.losses(model, batch, UpdateStatistics())))
    monkeypatch.undo()
    assert len(rows) == len(set(rows)) == 7
    with torch.no_grad():
        losses, tokens = 0.0, 0
        for row in rows:
            ids = torch.from_numpy(np.concatenate([corpus.prompt(row), corpus.chosen(row)]))[None]
            logprobs = model(ids).logits[0].double().log_softmax(-1)
            start = len(corpus.prompt(row))
            losses -= sum(float(logprobs[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))
            tokens += ids.shape[1] - start
    assert total == pytest.approx(0.3 * losses / tokens, rel=1e-5)


def step(folder, corpus) -> float:
    """Gradient norm of one optimizer step."""
    settings = EngineSettings(0, "fp32", 4, offload=False, gradient_checkpointing=False, overrides={})
    trainer, objective = Trainer(load_policy(folder, "fp32"), OPTIMIZATION, settings, 1), AnswerLikelihood()
    norm = trainer.step([lambda: objective.loss(trainer.engine, corpus, np.arange(4))[0] / 10])
    assert norm is not None
    return norm


def test_a_step_is_scaled_for_the_mean_that_deepspeed_takes_over_processes(
    gpt2_folder, list_corpus, group, monkeypatch
):
    alone = step(gpt2_folder, list_corpus)
    monkeypatch.setattr(engine, "world_size", lambda: 4)  # of which only this one has a gradient that is not 0
    assert step(gpt2_folder, list_corpus) == pytest.approx(4 * alone, rel=1e-5)
