"""The partition of rows into phases: exact, without overlap, random, and honest about what it leaves out."""

from fractions import Fraction

import numpy as np
import pytest

from rlhf.data.partition import numbered, partition
from rlhf.data.split import split_dataset
from rlhf.errors import UserError
from rlhf.files import read_json
from tests.unit.conftest import cached_dataset

PHASES = ("sft", "reward", "ppo")
SINGLE = {1, 4, 9, 10, 19}  # training rows without a rejected answer


def largest_remainder(rows: int, proportions: list[int]) -> list[int]:
    """Hamilton's apportionment in exact fractions: whole shares, then one more for the largest remainders."""
    shares = [Fraction(share * rows, sum(proportions)) for share in proportions]
    sizes = [int(share) for share in shares]
    remainders = sorted(range(len(sizes)), key=lambda part: (-(shares[part] - sizes[part]), part))
    for part in remainders[: rows - sum(sizes)]:
        sizes[part] += 1
    return sizes


@pytest.mark.parametrize("proportions", [[2, 4, 4], [1, 1, 1], [0, 1, 0], [7, 0, 3], [1, 2, 100], [5, 3, 1]])
@pytest.mark.parametrize("rows", [1, 2, 7, 10, 101, 1000])
def test_sizes_are_those_of_the_largest_remainders(rows, proportions):
    parts = partition(np.arange(rows), proportions, seed=1)
    assert [len(part) for part in parts] == largest_remainder(rows, proportions)
    assert sorted(np.concatenate(parts)) == list(range(rows))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)


@pytest.mark.parametrize("proportions", [[2, 4, 4], [0, 1, 1], [1, 0, 9]])
@pytest.mark.parametrize("seed", range(5))
def test_groups_are_never_divided_and_sizes_are_as_near_as_groups_allow(proportions, seed):
    """Every part is off by less than its two borders can be: half of the largest group each."""
    groups = np.random.default_rng(seed).integers(0, 40, 400)
    groups = np.unique(groups, return_inverse=True)[1]
    parts = partition(groups, proportions, seed)
    assert sorted(np.concatenate(parts)) == list(range(400))
    members = [set(groups[part].tolist()) for part in parts]
    assert not any(a & b for number, a in enumerate(members) for b in members[:number])
    largest = np.bincount(groups).max()
    for part, share in zip(parts, proportions, strict=True):
        assert abs(len(part) - 400 * share / sum(proportions)) <= largest
        assert share > 0 or not len(part)


def test_groups_are_numbered_as_they_appear():
    assert numbered(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 0, 2, 1]


def test_proportions_have_any_scale():
    wide, narrow = (partition(np.arange(50), shares, seed=3) for shares in ((20.0, 40.0, 40.0), (0.2, 0.4, 0.4)))
    for a, b in zip(wide, narrow, strict=True):
        assert a.tolist() == b.tolist()
    with pytest.raises(ValueError, match="sum to 0"):
        partition(np.arange(5), (0, 0, 0), seed=0)


def test_every_row_is_as_likely_in_a_phase_as_the_phase_is_large():
    """Over many seeds: chi-squared of the counts of each row, and of neighbours that share a phase."""
    seeds, rows = 3000, 12
    counts, together = np.zeros((rows, 3)), 0
    for seed in range(seeds):
        for phase, part in enumerate(partition(np.arange(rows), (1, 2, 3), seed)):
            counts[part, phase] += 1
            together += np.sum(np.diff(part) == 1)
    expected = seeds * np.array([2, 4, 6]) / rows
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # 12 rows of 3 cells, with both margins fixed: 22 degrees of freedom, of which 62.3 leaves one in 10^5.
    assert statistic * (rows - 1) / rows < 62.3
    likely = sum(size * (size - 1) for size in (2, 4, 6)) / (rows * (rows - 1))
    assert together / (seeds * (rows - 1)) == pytest.approx(likely, abs=0.02)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twenty training rows, five of them without a rejected answer, and four unseen ones, one of them so."""
    return cached_dataset(
        tmp_path_factory.mktemp("rows"),
        train=[{"rejected": [] if row in SINGLE else ["no"]} for row in range(20)],
        eval=[{"rejected": [] if row == 2 else ["no", "never"]} for row in range(4)],
    )


def indices(folder, split) -> list[list[int]]:
    return [np.load(folder / f"{split}.{phase}.npy").tolist() for phase in PHASES]


def test_phases_get_rows_of_their_own_and_all_unseen_ones(dataset, tmp_path):
    split_dataset(dataset, "2,4,4", 7, tmp_path / "split")
    sft, reward, ppo = indices(tmp_path / "split", "train")
    parts = [part.tolist() for part in partition(np.arange(20), (2, 4, 4), 7)]
    assert (sft, ppo) == (parts[0], parts[2])
    assert reward == [row for row in parts[1] if row not in SINGLE]
    assert indices(tmp_path / "split", "eval") == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    facts = read_json(tmp_path / "split/split.json")
    assert facts["schema_version"] == 1
    assert facts["rows"] == {
        "train.sft": 4, "train.reward": len(reward), "train.ppo": 8, "eval.sft": 4, "eval.reward": 3, "eval.ppo": 4,
    }  # fmt: skip
    assert facts["reward_rows_without_rejected"] == {"train": len(SINGLE & set(parts[1])), "eval": 1}
    assert all(np.load(file).dtype == np.int64 for file in (tmp_path / "split").glob("*.npy"))


def test_a_phase_without_a_share_gets_nothing(dataset, tmp_path):
    split_dataset(dataset, "1,0,0.5", 0, tmp_path / "split")
    assert [len(part) for part in indices(tmp_path / "split", "train")] == [13, 0, 7]
    assert indices(tmp_path / "split", "eval") == [[0, 1, 2, 3], [], [0, 1, 2, 3]]


def test_a_phase_that_is_not_going_to_be_run_may_be_left_without_a_row(dataset, tmp_path):
    """As instructions have none for a reward model, whatever share `data_split` gives to it."""
    split_dataset(dataset, "1,0,1000", 0, tmp_path / "split", ["reward", "ppo"])
    assert [len(part) for part in indices(tmp_path / "split", "train")] == [0, 0, 20]
    with pytest.raises(UserError, match="leaves phase sft without a usable row"):
        split_dataset(dataset, "1,0,1000", 0, tmp_path / "other", ["sft"])


def test_another_seed_gives_another_partition(dataset, tmp_path):
    for seed in (0, 1):
        split_dataset(dataset, "1,1,1", seed, tmp_path / str(seed))
    assert indices(tmp_path / "0", "train") != indices(tmp_path / "1", "train")


def test_a_split_that_leaves_a_phase_without_rows_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match=r"data_split: '0,0,0' gives every phase nothing"):
        split_dataset(dataset, "0,0,0", 0, tmp_path / "split")
    with pytest.raises(UserError, match=r"'1,0,1000' of 20 rows in 20 groups leaves phase sft without a usable row"):
        split_dataset(dataset, "1,0,1000", 0, tmp_path / "split")
    assert not (tmp_path / "split").exists()
    # One row for the reward phase, and for one seed in four it is one that has nothing to compare.
    alone = next(seed for seed in range(100) if partition(np.arange(20), (0, 1, 19), seed)[1][0] in SINGLE)
    with pytest.raises(UserError, match="leaves phase reward without a usable row"):
        split_dataset(dataset, "0,1,19", alone, tmp_path / "split")
