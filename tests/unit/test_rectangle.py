"""Samples in one rectangle: hardly any padding, and nothing that a model says depends on it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf.data.batching import micro_batches
from rlhf.errors import UserError
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.models.scores import TokenScorer, answer_logits
from rlhf.ppo.reward import SameTokens
from rlhf.ppo.samples import Answer, Partition, Rectangle, Samples, collate
from rlhf.ppo.scoring import Scorers, score_samples
from tests.unit.conftest import EVERY_FAMILY, VOCABULARY, save_random_model

CPU = torch.device("cpu")
SHAPES = ((3, 4), (9, 2), (5, 12), (14, 1))  # tokens of prompt and answer; beyond the sliding windows of the families
EOS = 1


def test_a_rectangle_by_hand():
    part = collate([np.array([5, 6, 7]), np.array([8])], [np.array([9]), np.array([10, 11])], 0, CPU)
    assert part.input_ids.tolist() == [[5, 6, 7, 9], [8, 10, 11, 0]]
    assert part.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert part.mask.tolist() == [[1, 0], [1, 1]]
    assert part.width == 2
    assert part.targets.tolist() == [9, 10, 11]
    assert part.inputs[2].tolist() == [[False, False, True, False], [True, True, False, False]]
    assert part.table(torch.tensor([0.5, 1.5, 2.5])).tolist() == [[0.5, 0.0], [1.5, 2.5]]


def test_a_table_hands_gradients_back_to_its_tokens():
    part = collate([np.array([5]), np.array([8])], [np.array([9]), np.array([10, 11])], 0, CPU)
    values = torch.zeros(3, requires_grad=True)
    (part.table(values) * torch.tensor([[2.0, 7.0], [3.0, 5.0]])).sum().backward()
    assert values.grad.tolist() == [2.0, 3.0, 5.0]


def test_a_prompt_without_a_token_is_refused():
    with pytest.raises(UserError, match="a prompt has no token"):
        collate([np.array([5]), np.array([], dtype=np.int64)], [np.array([9]), np.array([10])], 0, CPU)


@pytest.mark.parametrize("size", [4, 16, 32])
@pytest.mark.parametrize("spread", [0.6, 1.0])
def test_padding_is_at_most_a_tenth(size: int, spread: float) -> None:
    """Log-normal lengths of at most 256 + 256 tokens, in the micro-batches of training and scoring."""
    generator = np.random.default_rng(0)

    def lengths(median: int) -> np.ndarray:
        return np.clip(generator.lognormal(np.log(median), spread, 512).astype(int), 1, 256)

    prompts = [np.full(length, 5) for length in lengths(100)]
    answers = [Answer(np.full(length, 6), np.zeros(length), False) for length in lengths(80)]
    samples = Samples(prompts, answers)
    shares = micro_batches(np.arange(512), samples.lengths, size, 0, 1)
    computed = sum(samples.rectangle(micro.rows, 0, CPU).input_ids.numel() for micro in shares)
    assert computed <= 1.1 * samples.lengths.sum()


@pytest.fixture(scope="module", params=EVERY_FAMILY)
def scored(request: pytest.FixtureRequest, group: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Each family: models, some samples, and what scoring in one micro-batch says of them."""
    folder = tmp_path_factory.mktemp(request.param)
    model_type, sizes = EVERY_FAMILY[request.param]
    save_random_model(folder, model_type, sizes, VOCABULARY)
    return score(folder)


def score(folder: Path) -> SimpleNamespace:
    generator = np.random.default_rng(3)
    prompts = [generator.integers(3, VOCABULARY, prompt) for prompt, _ in SHAPES]
    ids = [np.append(generator.integers(3, VOCABULARY, answer - 1), EOS) for _, answer in SHAPES]
    finished = (True, False, True, True)
    answers = [Answer(answer, np.zeros(len(answer)), ends) for answer, ends in zip(ids, finished, strict=True)]
    policy = load_policy(folder, "fp32").eval()
    value, reward = (TokenScorer(load_reward_backbone(folder, "fp32", seed)).eval() for seed in (1, 2))
    samples = Samples(prompts, answers)

    def reference(part: Rectangle) -> torch.Tensor:
        return answer_logits(policy, *part.inputs) * 2

    shares = micro_batches(np.arange(len(SHAPES)), samples.lengths, len(SHAPES), 0, 1)
    assert len(shares) == 1
    scorers = Scorers(policy, reference, value, SameTokens(reward, 0))
    before_eos = SameTokens(reward, 0, "before_eos")
    rows = np.arange(len(SHAPES))
    with torch.no_grad():
        earlier = before_eos(samples, rows, samples.rectangle(rows, 0, CPU))
    scores = score_samples(samples, Partition([[shares]]), scorers, temperature=0.7)
    return SimpleNamespace(policy=policy, value=value, reward=reward, samples=samples, scores=scores, earlier=earlier)


@torch.no_grad()
def test_what_models_say_does_not_depend_on_padding(scored: SimpleNamespace) -> None:
    """Every sample alone, without padding, mask or positions, its log-probabilities in float64."""
    for row, (prompt, answer) in enumerate(zip(scored.samples.prompts, scored.samples.answers, strict=True)):
        ids = torch.from_numpy(np.concatenate([prompt, answer.ids]))[None]
        start, end = len(prompt), ids.shape[1]
        logits = scored.policy(ids).logits[0].double()
        for factor, name in ((1, "logprobs"), (2, "ref_logprobs")):
            table = (factor * logits / 0.7).log_softmax(-1)
            expected = [float(table[t - 1, ids[0, t]]) for t in range(start, end)]
            np.testing.assert_allclose(getattr(scored.scores, name)[row, : end - start], expected, atol=2e-4)
        table = (logits / 0.7).log_softmax(-1)
        entropy = -(table.exp() * table).sum(-1)[start - 1 : end - 1]
        np.testing.assert_allclose(scored.scores.entropy[row, : end - start], entropy, atol=2e-4)
        values, rewards = (
            scorer.model.score(scorer.body(ids).last_hidden_state)[0, :, 0] for scorer in (scored.value, scored.reward)
        )
        np.testing.assert_allclose(scored.scores.values[row, : end - start], values[start - 1 : end - 1], atol=2e-4)
        assert float(scored.scores.score[row]) == pytest.approx(float(rewards[-1]), abs=2e-4)
        assert float(scored.earlier[row]) == pytest.approx(float(rewards[-2 if answer.finished else -1]), abs=2e-4)
        for table in (scored.scores.logprobs, scored.scores.ref_logprobs, scored.scores.entropy, scored.scores.values):
            assert not table[row, end - start :].any()


def test_every_position_tells_another_value(scored: SimpleNamespace) -> None:
    """Or a value read one position early or late would not show."""
    for table in (scored.scores.logprobs, scored.scores.values):
        assert float((table[2, 1:] - table[2, :-1]).abs().min()) > 1e-3
