"""What is drawn at random has the distribution it should have; seeds are fixed, so that tests pass or fail for good.

A p-value below 0.001 is taken for a fault; that the tests can tell a fault is tested as well.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest, chi2_contingency, chisquare

from rlhf.data.partition import partition
from rlhf.models.loading import load_policy
from rlhf.ppo.rollout import sample_answers
from rlhf.runtime.seeds import derive_seed
from tests.oracle.material import EOS, save_flat_policy
from tests.unit.conftest import VOCABULARY

ROWS, STEPS, FAULT = 1500, 6, 0.001
LOGITS = np.append(np.linspace(-2.5, 2.5, VOCABULARY - 1), -2.5)
LOGITS[EOS] = -40.0  # never: all answers have the same length


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], np.ndarray]:
    """Answers [rows, steps] from the softmax of `LOGITS` at a temperature, with the seeds of a rollout."""
    model = load_policy(save_flat_policy(tmp_path_factory.mktemp("flat"), LOGITS.tolist()), "fp32").eval()
    seeds = [derive_seed(3, "rollout", 0, place) for place in range(ROWS)]
    prompts = [np.array([3 + place % 5]) for place in range(ROWS)]
    known: dict[float, np.ndarray] = {}

    def answers(temperature: float) -> np.ndarray:
        if temperature not in known:
            drawn = sample_answers(model, prompts, seeds, STEPS, temperature)
            known[temperature] = np.stack([answer.ids for answer in drawn])
        return known[temperature]

    return answers


def fit(tokens: np.ndarray, temperature: float) -> float:
    """P-value of tokens as draws from softmax(logits / temperature); the rare ones are one bin."""
    weights = np.exp(LOGITS / temperature - (LOGITS / temperature).max())
    expected = tokens.size * weights / weights.sum()
    counts = np.bincount(tokens.ravel(), minlength=VOCABULARY)
    rare = expected < 8
    bins = [np.append(table[~rare], table[rare].sum()) for table in (counts, expected)]
    return float(chisquare(*bins).pvalue)


def independence(first: np.ndarray, second: np.ndarray) -> float:
    """P-value of two series of tokens as independent ones, by classes of tokens that are about equally frequent."""
    edges = np.quantile(first, np.arange(1, 6) / 6)
    classes = [np.searchsorted(edges, series.ravel()) for series in (first, second)]
    table = np.zeros((6, 6))
    np.add.at(table, tuple(classes), 1)
    return float(chi2_contingency(table).pvalue)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 1.6])
def test_tokens_are_drawn_from_the_tempered_softmax(draw: Callable[[float], np.ndarray], temperature: float) -> None:
    tokens = draw(temperature)
    assert fit(tokens, temperature) > FAULT
    assert all(fit(tokens[:, step], temperature) > FAULT for step in range(STEPS))
    assert fit(tokens, temperature * 1.15) < FAULT


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_tokens_do_not_depend_on_those_of_other_steps_and_rows(
    draw: Callable[[float], np.ndarray], temperature: float
) -> None:
    tokens = draw(temperature)
    assert len(np.unique(tokens, axis=0)) == ROWS  # no row has the noise of another
    for step in range(1, STEPS):
        assert independence(tokens[:, :-step], tokens[:, step:]) > FAULT, step
    for row in (1, 2, 5, 500):
        assert independence(tokens[:-row], tokens[row:]) > FAULT, row
        assert independence(tokens[:-row, 1:], tokens[row:, :-1]) > FAULT, row
    repeated = tokens.copy()
    repeated[::8, 1::2] = repeated[::8, ::2]  # the noise of every other step again, in every eighth row
    assert independence(repeated[:, :-1], repeated[:, 1:]) < FAULT


PROPORTIONS = [(2.0, 4.0, 4.0), (1.0, 1.0, 1.0), (0.1, 0.2, 0.7), (1.0, 0.0, 3.0), (1.0, 0.0, 0.0), (98.0, 1.0, 1.0)]


@pytest.mark.parametrize("proportions", PROPORTIONS)
def test_every_size_is_divided_by_largest_remainders(proportions: tuple[float, ...]) -> None:
    shares = [Fraction(str(share)) / sum(Fraction(str(one)) for one in proportions) for share in proportions]
    for rows in range(1, 60):
        parts = partition(np.arange(rows), proportions, seed=rows)
        assert sorted(np.concatenate(parts).tolist()) == list(range(rows))
        exact = [share * rows for share in shares]
        extra = {int(part.size) - int(size) for part, size in zip(parts, exact, strict=True)}
        assert extra <= {0, 1}
        raised, kept = (
            [size - int(size) for part, size in zip(parts, exact, strict=True) if part.size - int(size) == more]
            for more in (1, 0)
        )
        assert min(raised, default=1) > 0  # no share, no row
        assert max(kept, default=0) <= min(raised, default=1)


def test_every_row_gets_into_every_phase_as_often_as_its_share() -> None:
    """Ten rows, 2,4,4, over many seeds; and two rows meet in a phase as often as in a draw without replacement."""
    seeds, shares = 2000, (0.2, 0.4, 0.4)
    phases = np.empty((seeds, 10), dtype=int)
    for seed in range(seeds):
        for phase, part in enumerate(partition(np.arange(10), (2, 4, 4), seed)):
            phases[seed, part] = phase
    for row in range(10):
        counts = np.bincount(phases[:, row], minlength=3)
        assert chisquare(counts, seeds * np.array(shares)).pvalue > FAULT, row
    for first, second in ((0, 1), (3, 7), (8, 9)):
        together = int(((phases[:, first] == 1) & (phases[:, second] == 1)).sum())
        assert binomtest(together, seeds, 4 / 10 * 3 / 9).pvalue > FAULT
