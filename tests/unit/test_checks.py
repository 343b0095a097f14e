"""The table of inequalities: a right run holds them all, and a violating row of each line is caught."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.config.stages import PpoSettings
from rlhf.errors import UserError
from rlhf.models.loading import DTYPES
from rlhf.records.metrics import MetricsLine
from rlhf.reporting.checks import (
    COMPARISONS,
    STATISTICS,
    Check,
    check_metrics,
    conditions,
    in_words,
    quantities,
    report,
    require_hard,
)
from rlhf.reporting.inequalities import HARD, INEQUALITIES, SOFT, Inequality

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
SETTINGS = PpoSettings().model_dump(mode="json", exclude={"execution"}) | {
    "iterations": STEPS,
    "dtype": "fp32",
    "kl_in": "loss",
    "kl_estimator": "k2",
    "kl_target": 6.0,
    "ptx_coefficient": 1.0,
}
MANIFEST = {"id": "tiny-12345678", "spec": {"settings": SETTINGS}, "rows_per_epoch": 640}

Metrics = dict[str, list[dict[str, Any]]]


def right_run() -> Metrics:
    """A run in which all lines of the table apply and hold."""
    ppo = [
        {
            "step": step,
            "phase": "train",
            "time": 0.5 * step,
            "tokens": 9000 * step,
            "sampling_logprob_error": 2e-6,
            "first_ratio_error": 0.0,
            "first_ratio_mean_error": 0.0,
            "kl": 0.4 * (step - 1),
            "kl_coefficient": 0.1,
            "kl_loss": 0.01,
            "entropy": 4.0 - 0.1 * step,
            "eos_share": 0.9,
            "response_length": 80.0,
            "score": 0.1 * step,
            "score_std": 1.0,
            "advantage_mean": 1e-8,
            "clip_fraction": 0.1,
            "ratio_mean": 1.0,
            "ratio_max": 2.0,
            "approx_kl": 0.01,
            "grad_norm": 0.5,
            "explained_variance": 0.3,
            "value_loss": 0.2,
            "critic_grad_norm": 1.5,
            "ptx_loss": 2.0,
        }
        for step in range(1, STEPS + 1)
    ]
    supervised = []
    for step in range(STEPS + 1):
        row = {"step": step, "time": 0.5 * step, "loss": 0.7 - 0.01 * step, "accuracy": 0.5 + 0.02 * step}
        supervised += [row | {"phase": "train"}] if step else []
        supervised += [row | {"phase": "eval"}] if step in (0, STEPS) else []
    return {"ppo": ppo, "sft": supervised, "reward": copy.deepcopy(supervised)}


def lines_of(metrics: Metrics) -> dict[str, list[MetricsLine]]:
    return {kind: [MetricsLine.of(row) for row in rows] for kind, rows in metrics.items()}


def violated(metrics: Metrics, manifest: dict[str, Any] = MANIFEST) -> list[Inequality]:
    return [check.line for check in check_metrics(manifest, lines_of(metrics)) if not check.holds]


def test_a_right_run_holds_every_line() -> None:
    checks = check_metrics(MANIFEST, lines_of(right_run()))
    assert [check.line for check in checks] == list(INEQUALITIES)
    assert all(check.holds for check in checks)
    require_hard(checks, "tiny-12345678")


def wrong_values(line: Inequality, target: float, count: int) -> list[float]:
    """Values whose statistic is `target`."""
    return {
        "rise": [0.0] * (count - 2) + [target] * 2,
        "rise from first to last": [0.0] * (count - 1) + [target],
        "last over first level": [1.0] * (count - 2) + [target] * 2,
        "smallest increase": list(np.cumsum([100.0] * (count - 1) + [target])),
        "largest increase": list(np.cumsum([target] + [0.0] * (count - 1))),
        "numbers not finite": [math.nan] + [1.0] * (count - 1),
    }.get(line.statistic, [target] * count)


def beyond(line: Inequality) -> float:
    bound = quantities(MANIFEST)[line.bound] if isinstance(line.bound, str) else line.bound
    return bound + (1e-3 if line.relation in ("<", "<=", "==") else -1e-3) * max(1, abs(bound))


@pytest.mark.parametrize("line", INEQUALITIES, ids=lambda line: f"{line.stage}-{line.metric}-{line.statistic}")
def test_a_violation_of_each_line_is_caught_and_explained(line: Inequality) -> None:
    metrics = right_run()
    rows = [row for row in metrics[line.stage] if row["phase"] == line.phase]
    name = "score" if line.metric == "*" and line.stage == "ppo" else "loss" if line.metric == "*" else line.metric
    for row, value in zip(rows, wrong_values(line, beyond(line), len(rows)), strict=True):
        row[name] = value
    checks = check_metrics(MANIFEST, lines_of(metrics))
    (found,) = [check for check in checks if check.line == line]
    assert not found.holds
    if line.hard:
        with pytest.raises(UserError) as error:
            require_hard(checks, "tiny-12345678")
        assert in_words(found) in str(error.value)
    else:
        assert report(checks, "tiny-12345678")["violated"] >= 1
    assert line.cause in in_words(found) and line.metric in in_words(found)


@pytest.mark.parametrize(
    ("metric", "row", "value", "hard"),
    [
        ("step", 9, 11, True),  # a line is lost
        ("step", 4, 4, True),  # a line is repeated
        ("tokens", 5, 1.0, True),
        ("tokens", 0, 64 * 512 + 1, True),
        ("sampling_logprob_error", 3, 2e-4, True),
        ("first_ratio_error", 9, 2e-6, True),
        ("first_ratio_mean_error", 9, 2e-6, True),
        ("kl", 0, 0.5, True),
        ("kl", 6, -0.4, True),
        ("entropy", 9, -0.1, True),
        ("eos_share", 2, 1.01, True),
        ("response_length", 2, 256.5, True),
        ("advantage_mean", 2, -2e-4, True),
        ("clip_fraction", 2, -0.01, True),
        ("approx_kl", 2, -1e-9, True),
        ("explained_variance", 2, 1.1, True),
        ("approx_kl", 2, 0.5, False),
        ("ratio_max", 2, 1000.0, False),
        ("kl", 9, 200.0, False),
        ("score", 0, 30.0, False),
    ],
)
def test_one_wrong_number_among_right_ones_is_caught(metric: str, row: int, value: float, hard: bool) -> None:
    metrics = right_run()
    metrics["ppo"][row][metric] = value
    lines = violated(metrics)
    assert lines and {line.metric for line in lines} == {metric}
    assert {line.hard for line in lines} == {hard}


# A line without a step is no line: reading it fails.
@pytest.mark.parametrize(
    "metric", sorted({line.metric for line in HARD if line.stage == "ppo"} - {"*", "kl_loss", "step"})
)
def test_an_absent_metric_is_a_violation(metric: str) -> None:
    metrics = right_run()
    for row in metrics["ppo"]:
        del row[metric]
    lines = violated(metrics)
    assert lines and {line.metric for line in lines} == {metric}
    with pytest.raises(UserError, match=f"of {metric} must be .* but the metric is absent"):
        require_hard(check_metrics(MANIFEST, lines_of(metrics)), "tiny-12345678")


def test_metrics_that_a_run_does_not_have_are_not_asked_for() -> None:
    settings = SETTINGS | {"advantage_estimator": "rloo", "answers_per_prompt": 2, "ptx_coefficient": 0.0}
    settings |= {"kl_in": "reward", "kl_target": None, "whiten_advantages": False, "dtype": "bf16"}
    metrics = right_run()
    for number, row in enumerate(metrics["ppo"]):
        for name in ("explained_variance", "value_loss", "critic_grad_norm", "ptx_loss", "kl_loss"):
            del row[name]
        row |= {"advantage_mean": 0.5, "sampling_logprob_error": 0.3, "first_ratio_error": 0.3}  # nor fp32
        if number == 0:
            del row["clip_fraction"]  # the policy did not train in the first iteration
    manifest = MANIFEST | {"spec": {"settings": settings}}
    assert violated(metrics, manifest) == []
    assert not any(conditions(manifest).values())


@pytest.mark.parametrize(("dtype", "spacing"), [("bf16", 1 / 8), ("fp16", 1 / 64)])
def test_in_half_precision_the_mean_ratio_may_be_off_by_one_unit_in_the_last_place(dtype: str, spacing: float) -> None:
    """Of a logit between 16 and 32; the ratio of a single token may be off by more."""
    assert float(torch.tensor(16.0, dtype=DTYPES[dtype]).nextafter(torch.tensor(32.0, dtype=DTYPES[dtype]))) == (
        16 + spacing
    )
    manifest = MANIFEST | {"spec": {"settings": SETTINGS | {"dtype": dtype}}}
    metrics = right_run()
    metrics["ppo"][3] |= {"first_ratio_error": 0.9, "first_ratio_mean_error": 0.99 * spacing}
    assert violated(metrics, manifest) == []
    metrics["ppo"][3]["first_ratio_mean_error"] = 1.01 * spacing
    (line,) = violated(metrics, manifest)
    assert (line.metric, line.hard) == ("first_ratio_mean_error", True)


def test_one_iteration_says_nothing_of_a_trend() -> None:
    manifest = MANIFEST | {"spec": {"settings": SETTINGS | {"iterations": 1}}}
    metrics = right_run()
    metrics["ppo"] = metrics["ppo"][:1]
    checks = check_metrics(manifest, lines_of(metrics))
    assert all(check.holds for check in checks)
    assert not [c for c in checks if c.line.statistic in COMPARISONS and c.line.stage == "ppo"]


def test_planned_steps_follow_from_epochs_and_prompts_where_no_iterations_are_given() -> None:
    settings = SETTINGS | {"iterations": None, "num_train_epochs": 2, "prompts_per_rollout": 64}
    assert quantities({"spec": {"settings": settings}, "rows_per_epoch": 650})["planned_steps"] == 20
    assert quantities({"spec": {"settings": settings}, "rows_per_epoch": 10})["planned_steps"] == 1


def test_bounds_follow_from_the_settings() -> None:
    found = quantities(MANIFEST)
    assert found["rollout_tokens"] == 64 * (256 + 256)
    assert found["lowest_kl"] == pytest.approx(-(20 / 64 + 256 * 1e-4))
    assert found["first_kl"] == pytest.approx(0.0256)
    assert found["twice_kl_target"] == 12.0


def test_a_sampled_kl_is_above_its_bound() -> None:
    """The mean log ratio of n answers drawn from p is below -s / n with a probability of exp(-s) at most."""
    random = np.random.default_rng(0)
    samples, trials = 8, 20_000
    for spread in (0.1, 1.0, 3.0):
        p, q = (np.exp(spread * random.normal(size=50)) for _ in range(2))
        p, q = p / p.sum(), q / q.sum()
        drawn = random.choice(50, size=(trials, samples), p=p)
        means = np.log(p / q)[drawn].mean(1)
        for s in (0.5, 1.0, 2.0, 4.0):
            assert (means < -s / samples).mean() <= math.exp(-s)
        assert means.min() > -20 / samples


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smallest", -4.0),
        ("largest", 3.0),
        ("largest magnitude", 4.0),
        ("mean", 0.4),
        ("first magnitude", 1.0),
        ("last", 2.0),
        ("last level", 2.5),
        ("rise", 3.0),
        ("rise from first to last", 3.0),
        ("last over first level", -5.0),
        ("smallest increase", -5.0),
        ("largest increase", 5.0),
        ("numbers not finite", 0),
    ],
)
def test_statistics(name: str, expected: float) -> None:
    assert STATISTICS[name]([-1.0, 0.0, 1.0, 0.0, 1.0, -4.0, 1.0, 1.0, 3.0, 2.0]) == pytest.approx(expected)


def test_every_statistic_is_used_and_known() -> None:
    assert {line.statistic for line in INEQUALITIES} == STATISTICS.keys()
    assert {line.hard for line in HARD} == {True} and {line.hard for line in SOFT} == {False}


def test_a_check_becomes_a_row() -> None:
    line = Inequality("kl", "largest", "<=", 1.0, "learning rate")
    assert Check(line, 1.0, 2.0, False).record() == {
        "stage": "ppo",
        "phase": "train",
        "metric": "kl",
        "statistic": "largest",
        "relation": "<=",
        "bound": 1.0,
        "value": 2.0,
        "hard": True,
        "holds": False,
        "cause": "learning rate",
    }
    assert "value" not in Check(line, 1.0, None, False).record()


def run_script(folder: Path, metrics: Metrics) -> subprocess.CompletedProcess[str]:
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    arguments = ["--manifest", "manifest.json", "--output", "out/checks.json"]
    for kind, rows in metrics.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments += [f"--{kind}", f"{kind}.jsonl"]
    return subprocess.run(
        [sys.executable, str(ROOT / "workflow/scripts/check_ppo.py"), *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_script_warns_of_soft_violations(tmp_path: Path) -> None:
    metrics = right_run()
    metrics["ppo"][-1]["approx_kl"] = 0.9
    done = run_script(tmp_path, metrics)
    assert done.returncode == 0, done.stderr
    assert "WARNING ppo (train): largest of approx_kl is 0.9, must be <= 0.2" in done.stderr
    written = json.loads((tmp_path / "out/checks.json").read_text())
    assert (written["id"], written["violated"], len(written["checks"])) == ("tiny-12345678", 1, len(INEQUALITIES))


def test_the_script_fails_on_hard_violations_and_names_them_all(tmp_path: Path) -> None:
    metrics = right_run()
    metrics["ppo"][3] |= {"eos_share": 1.5, "first_ratio_error": 0.1}
    done = run_script(tmp_path, metrics)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "\n  ppo (train): largest of eos_share is 1.5, must be <= 1." in done.stderr
    assert "\n  ppo (train): largest of first_ratio_error is 0.1, must be <= 1e-06." in done.stderr
    assert not (tmp_path / "out").exists()
