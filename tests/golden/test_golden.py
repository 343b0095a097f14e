"""The small run gives the numbers that are stored: a change that moves them stores new ones, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.stages import StageRun
from tests.golden.curves import EVALUATION, STAGES, curve, moved, of_metrics, read, write
from tests.project import Project

AGAIN = "if that is meant, `python -m tests.golden` stores what it is now; say why in the commit"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_the_stored_numbers(finished: Project, stage: str) -> None:
    changes = moved(curve(finished, stage), read(stage))
    assert not changes, f"{len(changes)} numbers of {stage} have moved ({AGAIN}): {changes[:10]}"


# Changes of a setting by a fiftieth, and numbers that must show it, none of them the setting itself. The penalty's is a
# fifth: so short a training does not go far from the SFT model, and the penalty is a small part of its reward.
SMALL_CHANGES = [
    ("sft", {"learning_rate": 5.1e-3}, {"loss", "grad_norm"}),
    ("sft", {"adam_beta2": 0.93}, {"loss", "grad_norm"}),
    ("reward", {"learning_rate": 2.04e-3}, {"loss", "grad_norm"}),
    ("ppo", {"kl_coefficient": 0.12}, {"value_loss", "grad_norm"}),
    ("ppo", {"gae_lambda": 0.97}, {"policy_loss", "grad_norm", "critic_grad_norm"}),
    ("ppo", {"actor": {"learning_rate": 1.02e-3}}, {"policy_loss", "grad_norm"}),
]


@pytest.mark.parametrize(("kind", "settings", "seen"), SMALL_CHANGES)
def test_the_limits_tell_small_changes_of_a_setting_apart(
    finished: Project, group: None, tmp_path: Path, kind: str, settings: dict[str, Any], seen: set[str]
) -> None:
    rows = of_metrics(StageRun(finished, kind, tmp_path, settings, {}).start().metrics)
    assert seen <= {name for _, name, _, _ in moved(rows, read(kind))}


def test_rounding_is_no_move_and_everything_else_is() -> None:
    stored = [{"phase": "train", "loss": 4.0, "accuracy": 0.0}, {"phase": "eval", "loss": 3.0}]
    close = [{"phase": "train", "loss": 4.0008, "accuracy": -1e-5}, {"phase": "eval", "loss": 2.9995}]
    assert moved(close, stored) == []
    for row, name, value in (
        (0, "loss", 4.001),
        (0, "accuracy", 3e-5),
        (1, "phase", "train"),
        (1, "loss", float("nan")),
    ):
        changed: list[dict[str, Any]] = [dict(line) for line in stored]
        changed[row][name] = value
        ((found_row, found_name, _, old),) = moved(changed, stored)
        assert (found_row, found_name, old) == (row, name, stored[row][name])
    assert moved(stored[:1], stored) == [(1, "phase", None, "eval"), (1, "loss", None, 3.0)]
    assert moved([{"number": "kl", "value": 2.0}], [{"number": "kl", "value": 1.0}]) == [("kl", "value", 2.0, 1.0)]
    assert moved([stored[0], {**stored[1], "new": 1.0}], stored) == [(1, "new", 1.0, None)]
    assert moved([{"phase": "train", "loss": 4.0}, stored[1]], stored) == [(0, "accuracy", None, 0.0)]


def test_a_stored_curve_is_read_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.golden.curves.FOLDER", tmp_path)
    rows: list[dict[str, Any]] = [{"step": 0, "phase": "eval", "loss": 1 / 3}, {"step": 1, "phase": "train", "kl": 0.0}]
    write("sft", rows)
    assert read("sft") == [{"step": 0, "phase": "eval", "loss": 0.3333333}, rows[1]]


@pytest.mark.parametrize("stage", EVALUATION)
def test_names_of_evaluated_numbers_are_told_apart(stage: str) -> None:
    names = [row["number"] for row in read(stage)]
    assert len(names) == len(set(names)) >= 5
