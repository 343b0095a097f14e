"""One PPO update on a real rollout: frozen old values, exact first ratio, and the same step however it is cut."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf.config.stages import PpoSettings
from rlhf.errors import UserError
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.scores import TokenScorer, answer_logits
from rlhf.ppo import update
from rlhf.ppo.experience import make_experience, rollout_kl, rollout_metrics
from rlhf.ppo.reward import SameTokens
from rlhf.ppo.rollout import generate
from rlhf.ppo.samples import Answer, Partition, Samples
from rlhf.ppo.scoring import Scorers, score_samples
from rlhf.ppo.statistics import UpdateStatistics
from rlhf.ppo.update import PpoUpdate
from rlhf.training.engine import EngineSettings, Trainer
from rlhf.training.faults import FaultCounter
from tests.specifications import changed

SETTINGS = PpoSettings(
    minibatches=2,
    prompts_per_rollout=8,
    ppo_epochs=2,
    max_answer_seq_len=10,
    dtype="fp32",
    actor={"learning_rate": 1e-2, "adam_epsilon": 1e-3, "lr_scheduler_type": "constant", "num_warmup_steps": 0},
    critic={"learning_rate": 1e-2, "adam_epsilon": 1e-3, "lr_scheduler_type": "constant", "num_warmup_steps": 0},
)


def trainer(model, role: str) -> Trainer:
    settings = EngineSettings(0, "fp32", 4, offload=False, gradient_checkpointing=False, overrides={})
    return Trainer(model, SETTINGS.optimization(role), settings, 10)


@pytest.fixture
def rollout(gpt2_folder, group):
    """Models, samples and a function that scores them in given micro-batches."""
    policy = load_policy(gpt2_folder, "fp32", 0.0)
    actor = trainer(policy, "actor")
    critic = trainer(TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=3, dropout=0.0)), "critic")
    reference = load_policy(gpt2_folder, "fp32", 0.0).eval()
    reward = TokenScorer(load_reward_backbone(gpt2_folder, "fp32", seed=4, dropout=0.0)).eval()
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, 50, generator.integers(2, 9)) for _ in range(8)]
    with actor.evaluation():
        samples = generate(policy, prompts, list(range(8)), 3, 10, 1.0)

    def reference_logits(part):
        return answer_logits(reference, *part.inputs)

    def score(partition):
        scorers = Scorers(actor.engine, reference_logits, critic.engine, SameTokens(reward, pad_id=0))
        with actor.evaluation(), critic.evaluation():
            return score_samples(samples, partition, scorers, 1.0)

    return SimpleNamespace(actor=actor, critic=critic, samples=samples, score=score)


def make(samples, scores, **changes):
    return make_experience(samples, scores, changed(SETTINGS, **changes), kl_coefficient=0.1)


def cut(rollout, size, *seeds, **changes) -> Partition:
    """A partition with a PPO epoch for each seed."""
    return Partition.draw(rollout.samples, changed(SETTINGS, **changes), size, seeds)


def train(rollout, experience, pad_id=0, **changes):
    faults = FaultCounter(Path("state"), "fp32", "stop")
    trained = PpoUpdate(rollout.actor, rollout.critic, changed(SETTINGS, **changes), pad_id, faults)
    return trained.run(experience, iteration=1, places=[])


def test_scores_do_not_depend_on_the_micro_batches(rollout):
    whole, pieces = (rollout.score(cut(rollout, size, 1)) for size in (8, 1))
    for name in ("logprobs", "ref_logprobs", "values", "entropy", "score"):
        assert torch.allclose(getattr(whole, name), getattr(pieces, name), atol=1e-4), name


def test_first_ratio_is_exactly_one_and_later_ones_are_not(rollout):
    experience = make(rollout.samples, rollout.score(cut(rollout, 3, 1, 2)))
    statistics = train(rollout, experience)
    assert statistics.first_ratio_error == (0.0, 0.0)
    metrics = statistics.metrics()
    assert metrics["ratio_max"] > 1.0
    assert metrics["approx_kl"] > 0.0
    assert len(statistics.actor_norms) == len(statistics.critic_norms) == SETTINGS.ppo_epochs * SETTINGS.minibatches


def test_a_wrong_old_logprob_stops_the_update_before_the_weights_move(rollout):
    scores = rollout.score(cut(rollout, 3, 1))
    scores.logprobs.add_(1e-3)
    experience = make(rollout.samples, scores)
    before = [parameter.detach().clone() for parameter in rollout.actor.module.parameters()]
    with pytest.raises(UserError, match="first minibatch"):
        train(rollout, experience)
    assert all(torch.equal(a, b) for a, b in zip(before, rollout.actor.module.parameters(), strict=True))


def test_in_half_precision_rounding_of_single_tokens_does_not_stop_the_update(rollout):
    """Old log-probabilities are off by one and by four units in the last place of a bf16 logit between 8 and 16."""
    scores = rollout.score(cut(rollout, 3, 1))
    experience = make(rollout.samples, scores)
    signs = 1 - 2 * (torch.arange(scores.logprobs.shape[1]) % 2)
    scores.logprobs.add_(signs * 2**-4)
    metrics = train(rollout, experience, dtype="bf16").metrics()
    assert metrics["first_ratio_error"] == pytest.approx(np.exp(2**-4) - 1, rel=1e-3)
    assert metrics["first_ratio_mean_error"] == pytest.approx(2**-4, rel=0.03)
    scores = rollout.score(cut(rollout, 3, 1))
    scores.logprobs.add_(signs * 2**-2)
    with pytest.raises(UserError, match="first minibatch"):
        train(rollout, make(rollout.samples, scores), dtype="bf16")


def test_every_sample_is_in_one_minibatch_of_each_epoch(rollout):
    epochs = cut(rollout, 3, 1, 2).epochs
    orders = [[row for part in epoch for micro in part for row in micro.rows.tolist()] for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(8))] * 2
    assert orders[0] != orders[1]


def test_a_rollout_is_scored_and_trained_on_in_the_same_order(rollout):
    partition = cut(rollout, 3, 1, 2)
    trained = [micro.rows.tolist() for shares in partition.minibatches for micro in shares]
    scored = [micro.rows.tolist() for micro in partition.scored]
    assert trained[: len(scored)] == scored
    assert sorted(row for rows in scored for row in rows) == list(range(8))


def test_the_update_learns_what_the_advantages_say(rollout):
    """Raise the probability of one sample's answer, lower the others'."""
    scores = rollout.score(cut(rollout, 8, *range(4)))
    experience = make(rollout.samples, scores)
    experience.advantages.copy_(-experience.mask)
    experience.advantages[2] = experience.mask[2]
    train(rollout, experience)
    after = rollout.score(scores.partition)
    change = ((after.logprobs - scores.logprobs) * experience.mask).sum(1)
    assert change[2] > 0
    assert change.sum() < change[2]


def test_values_move_towards_the_returns(rollout):
    experience = make(rollout.samples, rollout.score(cut(rollout, 8, *range(8))))
    train(rollout, experience, value_clip_range=None)
    error = [
        float(((values - experience.returns).square() * experience.mask).sum())
        for values in (experience.scores.values, rollout.score(experience.scores.partition).values)
    ]
    assert error[1] < error[0]


def test_losses_are_divided_by_the_tokens_of_all_processes(rollout, monkeypatch):
    """Where other processes have three times the tokens of this one, its gradients are a quarter."""
    experience = make(rollout.samples, rollout.score(cut(rollout, 3, 1, minibatches=1)))
    modules = [trainer.module for trainer in (rollout.actor, rollout.critic)]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    norms = []
    for factor in (1.0, 4.0):
        monkeypatch.setattr(update, "all_sum", lambda own, factor=factor: [factor * own])
        statistics = train(rollout, experience)
        norms.append((statistics.actor_norms[0], statistics.critic_norms[0]))
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)
    assert norms[1] == pytest.approx(tuple(norm / 4 for norm in norms[0]), rel=1e-4)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_ignores_what_the_policy_thinks_of_padding(rollout, estimator):
    """The padding token, which no answer contains, is made nearly impossible, by 95 nats."""
    used = {token for answer in rollout.samples.answers for token in answer.ids.tolist()}
    pad = next(token for token in range(50) if token not in used)

    def without_padding(_module, _inputs, output):
        output.logits = output.logits - 95 * (torch.arange(output.logits.shape[-1]) == pad)
        return output

    rollout.actor.module.register_forward_hook(without_padding)
    assert len(set(rollout.samples.answer_lengths)) > 1
    experience = make(rollout.samples, rollout.score(cut(rollout, 3, 1)), kl_in="loss", kl_estimator=estimator)
    metrics = train(rollout, experience, pad, kl_in="loss", kl_estimator=estimator).metrics()
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0 < metrics["kl_loss"] < 1
    assert all(torch.isfinite(parameter).all() for parameter in rollout.actor.module.parameters())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_in_the_reward_ignores_padding(estimator):
    answers = [Answer(np.array([5, 1]), np.zeros(2), True), Answer(np.array([5, 6, 7]), np.zeros(3), False)]
    samples = Samples([np.array([4])] * 2, answers)
    inside = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    rows = {}
    for pad in (0.0, -95.0, -torch.inf):
        logprobs = torch.where(inside == 1, torch.tensor(-0.75), torch.tensor(pad))
        scores = SimpleNamespace(
            logprobs=logprobs, ref_logprobs=-inside, values=torch.zeros(2, 3), score=torch.tensor([2.0, 3.0])
        )
        experience = make(samples, scores, kl_estimator=estimator)
        rows[pad] = (experience.advantages, experience.returns, torch.tensor(rollout_kl(experience)))
    for pad in (-95.0, -torch.inf):
        assert all(map(torch.equal, rows[pad], rows[0.0])), pad


def test_metrics_of_a_rollout_count_answer_tokens_only(rollout):
    scores = rollout.score(cut(rollout, 3, 1))
    experience = make(rollout.samples, scores)
    metrics = rollout_metrics(experience)
    lengths = rollout.samples.answer_lengths
    kl = [float((scores.logprobs[i, :n] - scores.ref_logprobs[i, :n]).sum()) for i, n in enumerate(lengths)]
    entropy = np.concatenate([scores.entropy[i, :n].numpy() for i, n in enumerate(lengths)])
    assert metrics["kl"] == pytest.approx(np.mean(kl), abs=1e-5)
    assert metrics["entropy"] == pytest.approx(entropy.mean(), rel=1e-5)
    assert metrics["response_length"] == lengths.mean()
    assert metrics["eos_share"] == np.mean([answer.finished for answer in rollout.samples.answers])
    assert metrics["score"] == pytest.approx(float(scores.score.mean()))


def test_experience_with_no_kl_and_no_discount_returns_the_score_everywhere():
    """beta = 0, gamma = lambda = 1: the return of every token is the final score."""
    answers = [Answer(np.array([5, 1]), np.zeros(2), True), Answer(np.array([5, 6, 7]), np.zeros(3), False)]
    samples = Samples([np.array([4])] * 2, answers)
    zero = torch.zeros(2, 3)
    scores = SimpleNamespace(
        logprobs=zero, ref_logprobs=zero, values=zero, score=torch.tensor([2.0, 3.0]), entropy=zero
    )
    settings = changed(SETTINGS, gamma=1.0, gae_lambda=1.0, missing_eos_penalty=0.5)
    experience = make_experience(samples, scores, settings, kl_coefficient=0.0)
    assert experience.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert experience.returns.tolist() == [[2.0, 2.0, 0.0], [2.5, 2.5, 2.5]]


def test_a_skipped_step_leaves_no_trace_in_the_statistics(group):
    statistics, mask, nan = UpdateStatistics(), torch.tensor([[1.0, 1.0, 0.0]]), float("nan")
    statistics.add_policy(torch.tensor(3.0), torch.tensor([[0.0, 1.0, 0.0]]), mask, clip_range=0.2)
    statistics.add_step(statistics.actor_norms, 0.5)
    statistics.add_policy(torch.tensor(nan), torch.tensor([[nan, 9.0, 0.0]]), mask, clip_range=0.2)
    statistics.add_step(statistics.actor_norms, None)
    statistics.add_value(torch.tensor(4.0), mask, weight=1.0)
    statistics.add_step(statistics.critic_norms, 0.25)
    metrics = statistics.metrics()
    assert metrics["policy_loss"] == pytest.approx(3.0 / 2)
    assert metrics["clip_fraction"] == pytest.approx(1 / 2)
    assert metrics["ratio_mean"] == pytest.approx((1 + np.e) / 2)
    assert metrics["ratio_max"] == pytest.approx(np.e)
    assert metrics["value_loss"] == pytest.approx(2.0)
    assert (metrics["grad_norm"], metrics["critic_grad_norm"], metrics["skipped_steps"]) == (0.5, 0.25, 1)
