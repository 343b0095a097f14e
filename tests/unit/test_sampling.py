"""Sampling: the right distribution, tied to the sample, with the log-probabilities that training sees."""

import numpy as np
import pytest
import torch

from rlhf.data.batching import pad
from rlhf.errors import UserError
from rlhf.models.loading import load_policy
from rlhf.models.scores import answer_logits, token_logprobs
from rlhf.ppo import rollout
from rlhf.ppo.checks import (
    RatioError,
    SamplingError,
    require_same_distribution,
    require_unit_ratio,
    sampling_error,
    unit_ratio_error,
)
from rlhf.ppo.rollout import GumbelNoise, sample_answers
from rlhf.ppo.samples import Answer, collate
from rlhf.training import distributed

CPU = torch.device("cpu")
PROMPTS = [np.array([5, 6, 7]), np.array([9]), np.array([11, 12, 13, 14, 15, 16])]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_noise_draws_from_the_tempered_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = 20_000
    noise = GumbelNoise(range(draws), temperature)
    scores = logits.repeat(draws, 1)
    picked = noise(torch.empty(0), scores).argmax(-1)
    shares = torch.bincount(picked, minlength=4) / draws
    expected = (logits.double() / temperature).softmax(-1)
    assert torch.allclose(shares.double(), expected, atol=0.015)
    recorded = noise.logprobs[0][:50].double()
    assert torch.allclose(recorded, expected.log()[picked[:50]], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampled_logprobs_equal_one_forward_pass(family_folder, temperature):
    model = load_policy(family_folder, "fp32").eval()
    answers = sample_answers(model, PROMPTS, [1, 2, 3], 12, temperature)
    part = collate(PROMPTS, [answer.ids for answer in answers], 0, CPU)
    with torch.no_grad():
        logits = answer_logits(model, *part.inputs) / temperature
    largest, mean = sampling_error(answers, part.table(token_logprobs(logits, part.targets)), part.mask)
    assert largest <= 1e-4
    assert mean <= 1e-5


def test_an_answer_does_not_depend_on_its_batch(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32").eval()
    together = sample_answers(model, PROMPTS, [1, 2, 3], 12, 1.0)
    for index, prompt in enumerate(PROMPTS):
        alone = sample_answers(model, [prompt], [index + 1], 12, 1.0)[0]
        assert alone.ids.tolist() == together[index].ids.tolist()


def test_other_seeds_give_other_answers(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32").eval()
    answers = sample_answers(model, [PROMPTS[0]] * 20, range(20), 12, 1.0)
    assert len({tuple(answer.ids.tolist()) for answer in answers}) > 10


def test_answers_end_with_the_first_eos_and_count_it(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32").eval()
    answers = sample_answers(model, [PROMPTS[0]] * 200, range(200), 30, 1.0)
    assert any(answer.finished for answer in answers)
    assert any(not answer.finished for answer in answers)
    for answer in answers:
        ends = np.flatnonzero(answer.ids == 1)
        assert list(ends) == ([len(answer.ids) - 1] if answer.finished else [])
        assert len(answer.logprobs) == len(answer.ids)
        assert answer.finished or len(answer.ids) == 30


def test_a_checkpoints_own_sampling_settings_are_ignored(gpt2_folder):
    model = load_policy(gpt2_folder, "fp32").eval()
    plain = sample_answers(model, PROMPTS, [1, 2, 3], 12, 1.0)
    (gpt2_folder / "generation_config.json").write_text(
        '{"top_k": 1, "temperature": 0.1, "repetition_penalty": 9.0, "min_length": 50}'
    )
    again = sample_answers(load_policy(gpt2_folder, "fp32").eval(), PROMPTS, [1, 2, 3], 12, 1.0)
    assert [a.ids.tolist() for a in plain] == [a.ids.tolist() for a in again]


@pytest.mark.parametrize(("partitioned", "processes", "synced"), [(True, 2, True), (False, 2, False), (True, 1, False)])
def test_processes_wait_for_each_other_only_where_parameters_are_partitioned(
    monkeypatch, partitioned, processes, synced
):
    """Else each token would cost a collective, and each batch the time of the slowest process."""
    model, asked = torch.nn.Linear(2, 2), []
    if partitioned:
        model.bias.ds_id = 0  # what DeepSpeed leaves on a parameter that it cuts

    def sample(_model, own, *_, synced):
        asked.append(synced)
        return [Answer(np.array([5]), np.zeros(1), False)] * len(own)

    others = {row: Answer(np.array([6]), np.zeros(1), False) for row in range(4)}
    for name, value in {
        "sample_answers": sample,
        "world_size": lambda: processes,
        "rank": lambda: 0,
        "all_gather": lambda own: [others, own],
    }.items():
        for module in (rollout, distributed):
            monkeypatch.setattr(module, name, value, raising=False)
    samples = rollout.generate(model, [np.array([7])] * 4, range(4), 1, 12, 1.0)
    assert asked == [synced] * (4 // processes)
    assert sorted(int(answer.ids[0]) for answer in samples.answers) == ([5] * 4 if processes == 1 else [5, 5, 6, 6])


def test_wrong_positions_are_caught_by_the_sampling_check(gpt2_folder):
    """The fault that hides best: left padding without position ids."""
    model = load_policy(gpt2_folder, "fp32").eval()
    answers = sample_answers(model, PROMPTS, [1, 2, 3], 12, 1.0)
    part = collate(PROMPTS, [answer.ids for answer in answers], 0, CPU)
    samples = [np.concatenate([prompt, answer.ids]) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    left = pad(samples, 0, "left")
    with torch.no_grad():
        ids, mask = torch.from_numpy(left.input_ids), torch.from_numpy(left.attention_mask)
        logits = model(ids, attention_mask=mask).logits
    lengths = [len(answer.ids) for answer in answers]
    wrong = [token_logprobs(logits[row, -1 - n : -1], ids[row, -n:]) for row, n in enumerate(lengths)]
    error = sampling_error(answers, part.table(torch.cat(wrong)), part.mask)
    assert error.largest_logprob > 0.01
    with pytest.raises(UserError, match="sampling and training disagree"):
        require_same_distribution(error, "fp32", 1e-4)


def test_checks_pass_below_and_fail_above_their_limits():
    require_same_distribution(SamplingError(9e-5, 0.0), "fp32", 1e-4)
    require_same_distribution(SamplingError(0.3, 0.009), "bf16", 1e-4)
    with pytest.raises(UserError, match="bf16"):
        require_same_distribution(SamplingError(0.3, 0.011), "bf16", 1e-4)
    require_unit_ratio(RatioError(9e-7, 9e-7), "fp32", 1e-6)
    with pytest.raises(UserError, match="first minibatch") as error:
        require_unit_ratio(RatioError(2e-6, 1e-9), "fp32", 1e-6)
    assert str(error.value).endswith(
        ": old and new log-probabilities are not of the same computation. "
        "Usual causes: dropout, or layers that behave differently in training mode"
    )


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 1 / 8), ("fp16", 1 / 64)])
def test_in_half_precision_the_mean_ratio_has_a_limit_of_its_own(dtype, limit):
    require_unit_ratio(RatioError(0.9, 0.99 * limit), dtype, 1e-6)
    with pytest.raises(UserError, match=f"on average, allowed is .* in {dtype}: .* Try ppo.dtype: fp32"):
        require_unit_ratio(RatioError(0.9, 1.01 * limit), dtype, 1e-6)


def test_the_error_of_ratios_is_over_all_tokens(group):
    parts = [torch.tensor([1.0, 1.5]), torch.tensor([0.75]), torch.tensor([1.0, 1.0])]
    assert unit_ratio_error(parts) == (0.5, pytest.approx(0.75 / 5))
    assert unit_ratio_error([torch.tensor([1.0, torch.nan, 0.5])]) == (0.5, pytest.approx(0.5 / 3))


def test_two_kinds_of_attention_in_half_precision_are_one_computation(gpt2_folder, group):
    """What a GPU may do between scoring and training: ratios are off by more than fp32 allows, and by less than half
    precision does."""
    model, prompts = load_policy(gpt2_folder, "bf16").eval(), [np.array([5, 6, 7])] * 32
    part = collate(prompts, [answer.ids for answer in sample_answers(model, prompts, range(32), 12, 1.0)], 0, CPU)
    found = []
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            found.append(token_logprobs(answer_logits(model, *part.inputs), part.targets))
    error = unit_ratio_error([(found[1] - found[0]).exp()])
    assert 1e-4 < error.mean < error.largest
    require_unit_ratio(error, "bf16", 1e-6)
    with pytest.raises(UserError, match="first minibatch"):
        require_unit_ratio(error, "fp32", 1e-6)
