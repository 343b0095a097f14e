"""Which rows an epoch sees, how often, and how rows are packed into sequences."""

import collections
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf.data.batching import MEGA_BATCHES, epoch_batches, micro_batches, pack, pad, shuffled_rows
from rlhf.data.corpus import Corpus
from rlhf.data.tokens import ANSWER
from rlhf.errors import UserError
from rlhf.evaluation.frame import unseen_prompts
from rlhf.files import read_json, write_json
from rlhf.training.frame import load_corpora
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.stage import StagePaths
from tests.specifications import specification


def write_dataset(folder: Path, split: str, rows: int) -> Path:
    """Tokens and rows of a phase in one folder; prompts have one token, chosen answers two."""
    folder.mkdir(exist_ok=True)
    facts = {"rows": dict.fromkeys(("train", "eval"), rows), "eos_token_id": 1, "pad_token_id": 0, "dtype": "uint16"}
    facts["chat_template"] = None
    facts |= {"tokenizer_fingerprint": "t", "dataset_fingerprint": folder.name, "subsets": {"train": [], "eval": []}}
    write_json(folder / "tokens.json", facts)
    np.save(folder / f"{split}.sft.npy", np.arange(rows))
    for number, field in enumerate(("prompt", "chosen", "rejected"), start=1):
        np.save(folder / f"{split}.{field}.offsets.npy", np.arange(rows + 1) * number)
        np.zeros(rows * number, dtype="uint16").tofile(folder / f"{split}.{field}.bin")
    np.save(folder / f"{split}.answers.npy", np.array([(2, 0, 1.0), (3, 1, 0.0)] * rows, ANSWER))
    np.save(folder / f"{split}.answers.offsets.npy", np.arange(0, 2 * rows + 1, 2))
    (folder / f"{split}.question.bin").touch()
    np.save(folder / f"{split}.question.offsets.npy", np.zeros(rows + 1, np.int64))
    np.save(folder / f"{split}.subset.npy", np.full(rows, -1, np.int32))
    np.save(folder / f"{split}.equal.npy", np.zeros(rows, bool))
    np.save(folder / f"{split}.seen.npy", np.zeros(rows, bool))
    np.save(folder / f"{split}.usable.npy", np.ones(rows, bool))
    return folder


@pytest.fixture
def two_datasets(tmp_path):
    """Makes a corpus of ten and seven rows with weights."""
    for name, rows in (("a", 10), ("b", 7)):
        write_dataset(tmp_path / name, "train", rows)
    folders = [tmp_path / "a", tmp_path / "b"]
    return lambda *weights: Corpus(folders, folders, "train", "sft", weights or None)


def test_without_weights_an_epoch_sees_every_row_once(two_datasets):
    corpus = two_datasets()
    assert corpus.rows_per_epoch == 17
    assert corpus.epoch_rows(seed=5, epoch=3).tolist() == list(range(17))


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.5, 1.0), (2.5, 0.4), (0.3, 3.0)])
def test_weights_are_exact_in_every_epoch(two_datasets, weights):
    corpus = two_datasets(*weights)
    expected = [int(weight) * rows + round(weight % 1 * rows) for weight, rows in zip(weights, (10, 7), strict=True)]
    seen = [collections.Counter(), collections.Counter()]
    for epoch in range(10):
        rows = corpus.epoch_rows(7, epoch)
        assert len(rows) == corpus.rows_per_epoch == sum(expected)
        parts = [rows[rows < 10], rows[rows >= 10]]
        assert [len(part) for part in parts] == expected
        for total, part, weight in zip(seen, parts, weights, strict=True):
            counts = collections.Counter(part.tolist())
            assert set(counts.values()) <= {int(weight), int(weight) + 1}  # no row more than once beyond the others
            total.update(counts)
    for total, count, rows in zip(seen, expected, (10, 7), strict=True):
        assert total.total() == 10 * count
        assert max(total.values()) - min(total[row] for row in total) <= 1
        assert len(total) == rows


def test_half_a_dataset_is_followed_by_the_other_half(two_datasets):
    corpus = two_datasets(0.5, 1.0)
    halves = [set(corpus.epoch_rows(1, epoch).tolist()) & set(range(10)) for epoch in range(3)]
    assert halves[0] | halves[1] == set(range(10))
    assert halves[0] == halves[2] != halves[1]
    assert halves != [set(corpus.epoch_rows(2, epoch).tolist()) & set(range(10)) for epoch in range(3)]


def test_weights_count_the_rows_that_were_kept(two_datasets):
    corpus = two_datasets(2.0, 1.0)
    corpus.keep(np.arange(17) >= 4, "a limit")
    assert corpus.rows_per_epoch == 2 * 6 + 7
    assert collections.Counter(corpus.epoch_rows(0, 0).tolist()) == {row: 2 if row < 6 else 1 for row in range(13)}


def test_a_weight_that_leaves_nothing_is_refused(two_datasets):
    with pytest.raises(UserError, match=r"data_weights: 0\.01 of 10 rows of dataset 1 leaves none"):
        two_datasets(0.01, 1.0).rows_per_epoch  # noqa: B018


def test_a_dataset_for_another_phase_only_gives_nothing(two_datasets, tmp_path):
    """As rows for SFT alone (`data_split: 1,0,0`) do in reward training, whatever their weight."""
    np.save(tmp_path / "b" / "train.sft.npy", np.arange(0))
    corpus = two_datasets(1.5, 3.5)
    assert corpus.rows_per_epoch == 15
    assert set(corpus.epoch_rows(0, 1).tolist()) == set(range(10))


def test_a_chat_template_is_that_of_all_datasets(two_datasets, tmp_path):
    assert two_datasets().chat_template is None
    for name, expected in (("a", None), ("b", "{{ messages }}")):
        facts = read_json(tmp_path / name / "tokens.json")
        write_json(tmp_path / name / "tokens.json", facts | {"chat_template": "{{ messages }}"})
        assert two_datasets().chat_template == expected


def test_lengths_are_those_of_each_row(two_datasets):
    corpus = two_datasets()
    assert corpus.lengths("chosen").tolist() == [len(corpus.chosen(row)) for row in range(17)] == [2] * 17


def test_batches_hold_the_rows_of_the_epoch(two_datasets):
    rows = two_datasets(2.0, 0.5).epoch_rows(0, 0)
    lengths = np.random.default_rng(0).integers(2, 30, 17)
    batches = epoch_batches(rows, lengths, 5, seed=3)
    assert [len(batch) for batch in batches].count(5) == len(rows) // 5
    assert sorted(np.concatenate(batches)) == sorted(rows)
    again = epoch_batches(rows, lengths, 5, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_prompts_come_in_the_same_proportions(two_datasets):
    corpus = two_datasets(2.0, 0.5)
    count = corpus.rows_per_epoch
    drawn = list(itertools.islice(shuffled_rows(corpus, 9), 2 * count))
    for epoch in range(2):
        part = drawn[epoch * count : (epoch + 1) * count]
        assert sorted(part) == sorted(corpus.epoch_rows(9, epoch).tolist())
    assert drawn[:count] != drawn[count:]
    assert drawn == list(itertools.islice(shuffled_rows(corpus, 9), 2 * count))
    assert drawn[:count] != list(itertools.islice(shuffled_rows(corpus, 8), count))


def test_prompts_come_in_a_new_order_in_every_pass(two_datasets):
    drawn = list(itertools.islice(shuffled_rows(two_datasets(), 9), 5 * 17))
    passes = [drawn[start : start + 17] for start in range(0, len(drawn), 17)]
    assert len({tuple(rows) for rows in passes}) == 5
    for rows in passes:
        assert sorted(rows) == list(range(17)) != rows
    assert list(itertools.islice(shuffled_rows(two_datasets(), 8), 17)) not in passes


def test_rows_of_like_length_share_a_batch_and_batches_come_in_random_order():
    """One window: exactly the sorted lengths, cut."""
    size, count = 4, 4 * MEGA_BATCHES
    rows = np.random.default_rng(1).permutation(1000)[:count]
    lengths = np.random.default_rng(2).permutation(1000)
    orders = []
    for seed in (0, 1, 2):
        batches = epoch_batches(rows, lengths, size, seed)
        means = [lengths[batch].mean() for batch in batches]
        sorted_batches = np.concatenate([lengths[batches[place]] for place in np.argsort(means)])
        assert sorted_batches.tolist() == sorted(lengths[rows])
        assert abs(np.corrcoef(np.arange(MEGA_BATCHES), means)[0, 1]) < 0.6  # sorted batches would have 1
        orders.append(np.argsort(means).tolist())
    assert orders[0] != orders[1] != orders[2]


def test_windows_keep_rows_of_an_epoch_apart():
    """Ten windows: a batch spans about a tenth of what random rows would, and more than of rows sorted as a whole."""
    size, count = 4, 40 * MEGA_BATCHES
    lengths = np.random.default_rng(3).permutation(count)
    batches = epoch_batches(np.arange(count), lengths, size, seed=0)
    assert sorted(np.concatenate(batches)) == list(range(count))
    spans = [np.ptp(lengths[batch]) for batch in batches]
    assert np.mean(spans) == pytest.approx((size - 1) * 10, rel=0.15)
    others = epoch_batches(np.arange(count), lengths, size, seed=1)
    assert not {frozenset(batch.tolist()) for batch in batches} & {frozenset(batch.tolist()) for batch in others}


def test_rows_of_one_length_are_shuffled_by_the_seed():
    (batch,) = epoch_batches(np.arange(100), np.full(100, 7), 100, seed=5)
    assert batch.tolist() == np.random.default_rng(5).permutation(100).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("constant", [False, True])
def test_micro_batches_deal_a_batch_to_the_processes(world_size, size, constant):
    lengths = np.full(100, 9) if constant else np.random.default_rng(4).integers(1, 40, 100)
    batch = np.random.default_rng(5).permutation(100)[:13]
    shares = [micro_batches(batch, lengths, size, rank, world_size) for rank in range(world_size)]
    (steps,) = {len(share) for share in shares}
    dealt = [shares[rank][step] for step in range(steps) for rank in range(world_size)]
    full = [micro for micro in dealt if micro.weight]
    assert dealt[: len(full)] == full  # fillers come last
    largest = min(size, -(-13 // world_size))
    assert len(full) == -(-13 // largest)
    assert {micro.weight for micro in full} == {1.0}
    assert [len(micro.rows) for micro in full[:-1]] == [largest] * (len(full) - 1)
    # Longest first, equal lengths in the order of the batch.
    expected = sorted(batch.tolist(), key=lambda row: -lengths[row])
    assert np.concatenate([micro.rows for micro in full]).tolist() == expected
    for filler in dealt[len(full) :]:
        assert (filler.rows.tolist(), filler.weight) == (expected[-1:], 0.0)


@pytest.mark.parametrize(("side", "width"), [("left", None), ("right", None), ("left", 6), ("right", 6)])
def test_padding_is_told_by_lengths_not_by_ids(side, width):
    sequences = [np.array([5, 0, 7]), np.array([0]), np.array([8, 9, 1, 0])]
    padded = pad(sequences, 0, side, width)
    columns = width or 4
    assert (padded.input_ids.dtype, padded.attention_mask.dtype) == (np.int64, np.int64)
    for ids, mask, sequence in zip(padded.input_ids, padded.attention_mask, sequences, strict=True):
        empty = columns - len(sequence)
        real, filler = sequence.tolist(), [0] * empty
        assert ids.tolist() == (filler + real if side == "left" else real + filler)
        assert mask.tolist() == ([0] * empty + [1] * len(real) if side == "left" else [1] * len(real) + [0] * empty)
    assert pad(sequences, 33, side).input_ids[1].tolist().count(33) == 3


def first_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's loop; returns the lengths in each sequence."""
    sequences: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        home = next((sequence for sequence in sequences if sum(sequence) + length <= capacity), None)
        if home is None:
            sequences.append(home := [])
        home.append(length)
    return sequences


@pytest.mark.parametrize("seed", range(5))
def test_packing_is_first_fit_decreasing(seed):
    lengths = np.random.default_rng(seed).integers(1, 33, 60)
    sequences = pack(lengths, 32)
    assert sorted(np.concatenate(sequences)) == list(range(60))
    assert [lengths[rows].tolist() for rows in sequences] == first_fit_decreasing(lengths.tolist(), 32)
    some = np.concatenate(sequences[1::3])  # as in a micro-batch
    again = pack(lengths[some], 32)
    assert [sorted(lengths[some][rows]) for rows in again] == [sorted(lengths[rows]) for rows in sequences[1::3]]


def test_of_rows_of_equal_length_the_first_is_packed_first():
    """So that packing follows from the lengths alone, whatever sorts them."""
    lengths = np.random.default_rng(0).integers(1, 9, 300)
    sequence = np.empty(300, int)
    for number, rows in enumerate(pack(lengths, 16)):
        sequence[rows] = number
    for length in np.unique(lengths):
        own = sequence[lengths == length].tolist()
        assert own == sorted(own)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_micro_batches_count_packed_sequences(world_size):
    lengths = np.random.default_rng(1).integers(1, 33, 80)
    batch = np.random.default_rng(2).permutation(80)[:50]
    shares = [micro_batches(batch, lengths, 4, rank, world_size, capacity=32) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    rows = np.concatenate([micro.rows for share in shares for micro in share if micro.weight])
    assert sorted(rows) == sorted(batch)
    sizes = [len(pack(lengths[micro.rows], 32)) for share in shares for micro in share if micro.weight]
    assert max(sizes) == 4
    assert sum(sizes) == len(pack(lengths[batch], 32))


@pytest.fixture
def unseen_rows(tmp_path):
    """What a stage keeps of the unseen rows: (dataset, row in it) of each, for datasets in some order."""

    def kept(rows: dict[str, int], limit: int, seed: int = 1) -> list[tuple[str, int]]:
        folders = [tmp_path / name for name in rows]
        for folder, count in zip(folders, rows.values(), strict=True):
            for split in ("train", "eval"):
                write_dataset(folder, split, count)
        settings = {"data_weights": [1.0] * len(rows), "max_seq_len": 9, "max_eval_rows": limit}
        paths = StagePaths(folders, folders, tmp_path, tmp_path)
        stage = SimpleNamespace(settings=specification("sft", settings).settings, seed=seed, paths=paths)
        unseen = load_corpora(stage, AnswerLikelihood(), "sft").unseen
        names = list(rows)
        return [(names[dataset], row) for dataset, row in map(unseen.place, range(len(unseen)))]

    return kept


def test_the_rows_to_evaluate_on_are_a_sample_of_all_datasets(unseen_rows):
    """Half of a thousand rows from each of two, from all over it; the order of the datasets does not matter."""
    rows = {"a": 1200, "b": 1200}
    found = unseen_rows(rows, 1000)
    assert len(set(found)) == len(found) == 1000
    assert collections.Counter(name for name, _ in found) == {"a": 500, "b": 500}
    for name in rows:
        own = [row for dataset, row in found if dataset == name]
        assert abs(np.mean(own) - 599.5) < 4 * 1200 / 12**0.5 * (700 / 1199 / 500) ** 0.5  # four deviations
    assert [row for name, row in found if name == "a"] != [row for name, row in found if name == "b"]
    assert set(unseen_rows({"b": 1200, "a": 1200}, 1000)) == set(found)


def test_every_run_evaluates_on_the_same_rows_whatever_its_seed(unseen_rows):
    rows = {"a": 120, "b": 30}
    found = unseen_rows(rows, 50)
    assert collections.Counter(name for name, _ in found) == {"a": 40, "b": 10}
    assert unseen_rows(rows, 50, seed=2) == found
    assert set(unseen_rows(rows, 49)) < set(found) < set(unseen_rows(rows, 51))
    assert len(unseen_rows(rows, 1000)) == 150


@pytest.mark.parametrize("limit", [1, 7, 60, 149])
def test_a_sample_has_each_datasets_share(tmp_path, limit):
    counts = {"a": 100, "b": 35, "c": 15}
    folders = [write_dataset(tmp_path / name, "eval", rows) for name, rows in counts.items()]
    corpus, backwards = Corpus(folders, folders, "eval", "sft"), Corpus(folders[::-1], folders[::-1], "eval", "sft")
    chosen = corpus.sample(limit, seed=5)
    found = collections.Counter(corpus.place(row)[0] for row in chosen)
    assert len(set(chosen)) == limit
    assert all(abs(found[number] - limit * rows / 150) <= 1 for number, rows in enumerate(counts.values()))
    places = [(2 - dataset, row) for dataset, row in map(backwards.place, backwards.sample(limit, seed=5))]
    assert places == [corpus.place(row) for row in chosen]  # in the same order, too
    assert len(corpus.sample(1000, seed=5)) == 150
    assert corpus.sample(150, seed=6).tolist() != corpus.sample(150, seed=5).tolist()


def test_the_only_row_of_a_dataset_may_stand_anywhere(tmp_path):
    folders = [write_dataset(tmp_path / name, "eval", rows) for name, rows in (("a", 1), ("b", 5))]
    corpus = Corpus(folders, folders, "eval", "sft")
    places = [corpus.sample(6, seed).tolist().index(0) for seed in range(60)]
    assert set(places) == set(range(6))


def test_a_row_that_is_left_out_takes_no_other_with_it(tmp_path):
    folder = write_dataset(tmp_path / "a", "eval", 100)
    whole, part = (Corpus([folder], [folder], "eval", "sft") for _ in range(2))
    part.keep(np.arange(100) % 10 > 0, "a limit")
    expected = [row for row in whole.sample(100, seed=3) if row % 10][:30]
    assert [part.place(row)[1] for row in part.sample(30, seed=3)] == expected


def test_prompts_to_answer_are_a_sample_of_all_datasets(tmp_path):
    """In an order that mixes them, because the first ones are shown; with as many tokens as are allowed."""
    for name, rows in (("a", 300), ("b", 100)):
        np.save(write_dataset(tmp_path / name, "eval", rows) / "eval.ppo.npy", np.arange(rows))
    chosen = {}
    for names, seed in (("ab", 1234), ("ba", 1234), ("ab", 1235)):
        folders = [tmp_path / name for name in names]
        evaluation: Any = SimpleNamespace(settings=SimpleNamespace(max_prompt_seq_len=1, prompts=40), seed=seed)
        evaluation.paths = StagePaths(folders, folders, tmp_path, tmp_path)
        corpus, rows = unseen_prompts(evaluation)
        chosen[names, seed] = [(names[dataset], row) for dataset, row in map(corpus.place, rows)]
    found = chosen["ab", 1234]
    assert found == chosen["ba", 1234] != chosen["ab", 1235]
    assert collections.Counter(name for name, _ in found) == {"a": 30, "b": 10}
    assert {name for name, _ in found[:6]} == {"a", "b"}
    # Another choice makes evaluations of equal settings differ: their revision must then be raised.
    assert found[:2] == [("a", 159), ("b", 54)]
