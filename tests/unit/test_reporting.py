"""Reporting on a synthetic experiment: two sweep points, two seeds, shared SFT and reward stages."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rlhf.errors import UserError
from rlhf.records.experiment import ExperimentRun, read_runs
from rlhf.reporting.check_tables import check_rows, check_table, warnings_text
from rlhf.reporting.collect import (
    Experiment,
    StageFiles,
    provenance,
    read_experiment,
    short_names,
)
from rlhf.reporting.memory import memory
from rlhf.reporting.plots import Curve, best_of_n_curve, learning_curves, mean_curve, reward_vs_kl, root_of_kl
from rlhf.reporting.quality import (
    quality_csv,
    quality_rows,
    quality_table,
    run_columns,
    run_rows,
    samples_html,
    samples_markdown,
)
from rlhf.reporting.resources import memory_rows, resource_rows
from rlhf.reporting.reward import REWARD_COLUMNS, calibration_bins, pooled, reward_model, reward_rows
from rlhf.reporting.style import PALETTE, colours
from rlhf.reporting.summary import summarise
from rlhf.reporting.tables import (
    TEXT_LIMIT,
    Column,
    escape_markdown,
    to_csv,
    to_html,
    to_markdown,
)

CODE = "sha256:present"
SCRIPT = Path(__file__).parents[2] / "workflow" / "scripts" / "summarise.py"
COEFFICIENTS = (0.05, 0.0)
SEEDS = (1, 2)
BEST_OF = (1, 2, 4, 8)


def _write(path: Path, *rows: Any, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows[0]))


def _stage(folder: Path, kind: str, code: str = CODE, phases: tuple[str, ...] = (), **device: int) -> None:
    manifest = {"stage": kind, "id": folder.name, "code": {"hash": code}, "wall_seconds": 61.5, "world_size": 1}
    _write(folder / "manifest.json", manifest)
    if phases:
        measured = [
            {"name": name, "start_rss": 200 * 2**20, "peak_rss": (300 + 90 * place) * 2**20, "seconds": 2.0, **device}
            for place, name in enumerate(phases)
        ]
        peak = max(phase["peak_rss"] for phase in measured)
        processes = [{"rank": 0, "host": "node", "phases": measured, "peak_rss": peak}]
        _write(folder / "memory.json", {"processes": processes, "peak_rss": peak, "device": "cpu", "unit": "bytes"})


def _supervised(root: Path, seed: int) -> None:
    noise = np.random.default_rng(seed)
    for kind in ("sft", "reward"):
        rows: list[dict[str, Any]] = []
        for step in range(1, 121):
            loss = (1.1 + 3.2 * math.exp(-step / 18) if kind == "sft" else 0.35 + 0.34 * math.exp(-step / 30)) + float(
                noise.normal(0, 0.03)
            )
            extra = {"accuracy": 0.5 + 0.35 * (1 - math.exp(-step / 30))} if kind == "reward" else {}
            rows.append({"step": step, "phase": "train", "time": step, "loss": loss, "tokens_per_second": 900, **extra})
            if step % 40 == 0:
                rows.append({"step": step, "phase": "eval", "time": step, "loss": loss + 0.05, **extra})
        folder = root / "results" / kind / f"tiny-s{seed}-{kind}"
        _stage(folder, kind, "sha256:past" if kind == "sft" else CODE, ("load", "train", "evaluate", "save"))
        _write(folder / "metrics.jsonl", *rows, lines=True)
    _write(root / f"results/evaluate_sft/tiny-s{seed}/evaluation.json", {"loss": 1.1, "perplexity": 3.0 + seed / 10})
    judged = {"accuracy": 0.8 + seed / 100, "gold_accuracy": 0.85, "pairs": 900, "longer_accuracy": 0.55}
    part = {"pairs": 300 * seed, "accuracy": 0.7 + seed / 10, "accuracy_low": 0.7, "accuracy_high": 0.95}
    judged |= {
        "calibration_error": 0.02,
        "calibration": [
            {"from": p, "to": p + 0.05, "pairs": 100 * seed, "predicted": p + seed / 100}
            | {"observed": p, "observed_low": p - 0.1, "observed_high": p + 0.1}
            for p in (0.6, 0.85, 0.95)
        ],
        "by_subset": [{"subset": "chat", "longer_accuracy": 0.5, **part}],
        "by_longer": [{"chosen": "longer", **part}],
        "by_length_difference": [{"from": -9, "to": -2, **part}, {"from": -1, "to": 4, **part}],
    }
    _write(root / f"results/evaluate_reward/tiny-s{seed}/evaluation.json", judged)


def _baseline(root: Path, seed: int, gold: bool) -> None:
    table = [
        {"n": n, "kl": math.log(n) - (n - 1) / n, "score": 0.1 * seed + math.log(n), "win_rate": n / (n + 1)}
        | ({"gold": 0.5 * math.log(n)} if gold else {})
        for n in BEST_OF
    ]
    _write(root / f"results/baseline/tiny-s{seed}/evaluation.json", {"best_of_n": table, "eos_share": 0.9})


def _ppo(root: Path, coefficient: float, seed: int, gold: bool) -> None:
    noise, name = np.random.default_rng(seed), f"tiny-s{seed}-kl{coefficient}"
    rows: list[dict[str, Any]] = []
    for step in range(1, 41):
        kl = (3 if coefficient else 12) * (1 - math.exp(-step / 15)) + float(noise.normal(0, 0.1))
        score = 1.3 * math.sqrt(max(kl, 0)) + float(noise.normal(0, 0.1))
        judged = {"gold": 1.2 * math.sqrt(max(kl, 0)) - 0.18 * kl + float(noise.normal(0, 0.1))} if gold else {}
        finished = {"response_length": 18 + kl, "eos_share": 1 - 0.02 * kl}
        rows.append({"step": step, "phase": "train", "time": step, "score": score, "kl": kl, **finished, **judged})
    folder = root / "results/ppo" / name
    _stage(folder, "ppo", CODE, ("load", "generate", "score", "train", "save"))
    _write(folder / "metrics.jsonl", *rows, lines=True)
    result = {
        "win_rate": 0.7 + seed / 100,
        "kl": 3.0 if coefficient else 12.0,
        "score_mean": 2.2,
        "sft_score_mean": 0.1,
    }
    judged = {"gold_mean": 1.5, "sft_gold_mean": 0.1, "gold_win_rate": 0.66} if gold else {}
    _write(root / "results/check_ppo" / name / "checks.json", _checks(12.0 if not coefficient else 3.0))
    evaluation = root / "results/evaluate_ppo" / name
    _write(evaluation / "evaluation.json", {**result, "response_length": 21.0, "eos_share": 0.97, **judged})
    sample = {"row": 1, "prompt": "Write | a\nreview", "sft": "<b>*fine*</b>", "policy": "x" * 900}
    numbers = {"sft_score": 0.1, "policy_score": 2.34567, "sft_length": 3, "policy_length": 24}
    numbers |= {"sft_finished": True, "policy_finished": False}
    _write(evaluation / "samples.jsonl", {**sample, **numbers}, {**sample, **numbers}, lines=True)


def _checks(kl: float) -> dict[str, Any]:
    """A hard inequality that holds, and a soft one that holds for a small KL."""
    place = {"stage": "ppo", "phase": "train"}
    share = {"metric": "eos_share", "statistic": "largest", "relation": "<=", "bound": 1, "value": 0.9}
    level = {"metric": "kl", "statistic": "last level", "relation": "<=", "bound": 10, "value": kl}
    hard = {**place, **share, "hard": True, "holds": True, "cause": "a wrong count"}
    return {
        "violated": int(kl > 10),
        "checks": [hard, {**place, **level, "hard": False, "holds": kl <= 10, "cause": "a | b"}],
    }


def make_experiment(root: Path, gold: bool = True) -> list[dict[str, Any]]:
    """Write all files of the experiment below `root`; returns its runs as in runs.json."""
    runs = []
    _stage(root / "resources/datasets/reviews-1", "dataset")
    _stage(root / "resources/models/tiny-1", "model")
    for seed in SEEDS:
        _supervised(root, seed)
        _baseline(root, seed, gold)
        _write(
            root / f"benchmarks/sft/tiny-s{seed}-sft.jsonl", {"s": 60.0, "max_rss": 512.5, "cpu_time": "NA"}, lines=True
        )
        for coefficient in COEFFICIENTS:
            _ppo(root, coefficient, seed, gold)
    for coefficient in COEFFICIENTS:
        for seed in SEEDS:
            stages = {"dataset": "reviews-1", "policy": "tiny-1", "reward_model": "tiny-1"}
            stages |= {"sft": f"tiny-s{seed}-sft", "reward": f"tiny-s{seed}-reward", "baseline": f"tiny-s{seed}"}
            stages |= {"evaluate_sft": f"tiny-s{seed}", "evaluate_reward": f"tiny-s{seed}"}
            stages |= {kind: f"tiny-s{seed}-kl{coefficient}" for kind in ("ppo", "evaluate_ppo")}
            runs.append({"point": {"ppo.kl_coefficient": coefficient}, "seed": seed, "stages": stages})
    return runs


def _read(root: Path, gold: bool = True) -> Experiment:
    runs = [ExperimentRun(**run) for run in make_experiment(root, gold)]
    return read_experiment("reviews", runs, root)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return _read(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def without_gold(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return _read(tmp_path_factory.mktemp("project"), gold=False)


@pytest.fixture(scope="module")
def all_files(experiment: Experiment) -> set[str]:
    """Names of all that is written for an experiment."""
    return set(summarise(experiment, CODE, experiment.root / "results/experiments/reviews", samples=1))


def test_shared_stages_are_read_once(experiment: Experiment) -> None:
    kinds = [stage.kind for stage in experiment.in_order()]
    assert (kinds.count("sft"), kinds.count("ppo"), kinds.count("model")) == (2, 4, 1)
    assert kinds[0] == "dataset" and kinds[-1] == "evaluate_ppo"


def test_points_keep_the_order_of_the_runs(experiment: Experiment) -> None:
    points = experiment.points()
    assert [[run.seed for run in runs] for runs in points] == [[1, 2], [1, 2]]
    assert [experiment.label(runs[0].point) for runs in points] == ["kl_coefficient = 0.05", "kl_coefficient = 0.0"]
    assert experiment.label({}) == "reviews"


def test_short_names_stay_distinct() -> None:
    keys = ["sft.learning_rate", "reward.learning_rate", "ppo.gamma"]
    assert short_names(keys) == {keys[0]: keys[0], keys[1]: keys[1], "ppo.gamma": "gamma"}


@pytest.mark.parametrize(("content", "message"), [([], "no run"), ([{"seed": 1}], "needs point"), ([3], "needs point")])
def test_broken_runs_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    _write(tmp_path / "runs.json", content)
    with pytest.raises(UserError, match=message):
        read_runs(tmp_path / "runs.json")


@pytest.mark.parametrize(
    "missing",
    [
        "results/evaluate_ppo/tiny-s1-kl0.0/evaluation.json",
        "results/sft/tiny-s1-sft/metrics.jsonl",
        "results/check_ppo/tiny-s1-kl0.0/checks.json",
    ],
)
def test_a_missing_result_is_an_error(tmp_path: Path, missing: str) -> None:
    runs = [ExperimentRun(**run) for run in make_experiment(tmp_path)]
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match="file not found"):
        read_experiment("reviews", runs, tmp_path)


def test_an_unknown_stage_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'cooking'"):
        read_experiment("reviews", [ExperimentRun({}, 1, {"cooking": "x"})], tmp_path)


def test_provenance_names_stages_of_older_code(experiment: Experiment) -> None:
    links = provenance(experiment, CODE)
    assert links["made_by_older_code"] == [{"stage": "sft", "id": f"tiny-s{seed}-sft"} for seed in SEEDS]
    assert links["runs"][0]["stages"]["reward_model"] == {"id": "tiny-1", "path": "resources/models/tiny-1"}
    same = {(entry["stage"], entry["id"]): entry.get("same_code") for entry in links["stages"]}
    assert same["ppo", "tiny-s1-kl0.0"] is True
    assert same["evaluate_sft", "tiny-s1"] is None  # no manifest: not known


def test_runs_have_one_row_each(experiment: Experiment) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(run_rows(experiment), [c.key for c in run_columns(experiment)]))))
    assert [(row["ppo.kl_coefficient"], row["seed"]) for row in rows] == [
        ("0.05", "1"),
        ("0.05", "2"),
        ("0.0", "1"),
        ("0.0", "2"),
    ]
    assert float(rows[1]["win_rate"]) == 0.72
    assert rows[0]["sft_response_length"] == ""  # not measured


def test_quality_is_mean_sd_and_t_interval(experiment: Experiment) -> None:
    row = quality_rows(experiment)[0]
    assert row["seeds"] == 2
    assert row["win_rate_mean"] == pytest.approx(0.715)
    assert row["win_rate_sd"] == pytest.approx(0.01 / math.sqrt(2))
    assert row["win_rate_high"] == pytest.approx(0.715 + 12.7062047 * 0.005)  # t(0.975, 1 degree of freedom)
    assert "sft_response_length_mean" not in row


def test_intervals_of_shares_stay_between_0_and_1(experiment: Experiment) -> None:
    def interval(metric: str, *values: float) -> tuple[float, float]:
        stages = dict(experiment.stages)
        for run, value in zip(experiment.runs[:2], values, strict=True):
            place = run.stage("evaluate_ppo")
            stages[place] = replace(stages[place], evaluation={metric: value})
        row = quality_rows(Experiment("two", experiment.runs[:2], stages, experiment.root))[0]
        return row[f"{metric}_low"], row[f"{metric}_high"]

    assert interval("win_rate", 0.4, 0.6) == (0, 1)
    assert interval("eos_share", 0.99, 1.0) == (pytest.approx(0.995 - 12.7062047 * 0.005), 1)
    assert interval("kl", 0.4, 0.6) == pytest.approx((0.5 - 12.7062047 * 0.1, 0.5 + 12.7062047 * 0.1))


def test_quality_cells_show_spread_only_where_it_is_known(experiment: Experiment) -> None:
    rows, columns = quality_table(experiment)
    assert rows[0]["win_rate"] == "0.715 ± 0.007 [0.651, 0.779]"
    one_seed = Experiment("one", experiment.runs[:1], experiment.stages, experiment.root)
    assert quality_table(one_seed)[0][0]["win_rate"] == "0.710"
    assert "win_rate_sd" in quality_csv(one_seed)
    header = [cell.strip() for cell in to_markdown(rows, columns).splitlines()[0].split("|")]
    assert header[1:5] == ["kl_coefficient", "seeds", "win rate", "gold win rate"]


def test_an_overlap_with_the_training_rows_stands_beside_every_number(tmp_path: Path) -> None:
    """In the tables, the legends and the samples; nothing is said where there is none."""
    runs = [ExperimentRun(**run) for run in make_experiment(tmp_path)]
    output = tmp_path / "results/experiments/reviews"
    before = summarise(read_experiment("reviews", runs, tmp_path), CODE, output, 3)
    shown = ("quality.md", "runs.md", "reward_parts.md", "samples.md", "index.md")
    assert not any(re.search(r"\d+ of \d+ trained on|\| yes", before[name].split("`(")[0]) for name in shown)
    for name, seen in (("tiny-s1", 7), ("tiny-s2", 2)):
        for stage in ("evaluate_sft", "evaluate_reward", "baseline"):
            path = tmp_path / f"results/{stage}/{name}/evaluation.json"
            size = {"rows" if stage == "evaluate_sft" else "prompts": 50}
            _write(path, json.loads(path.read_text()) | size | {"seen_in_train": seen})
    for path in tmp_path.glob("results/evaluate_ppo/*/evaluation.json"):
        _write(path, json.loads(path.read_text()) | {"prompts": 40, "seen_in_train": 3})
    for path in tmp_path.glob("results/evaluate_ppo/*/samples.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        _write(path, rows[0] | {"seen_in_train": True}, rows[1] | {"seen_in_train": False}, lines=True)
    files = summarise(read_experiment("reviews", runs, tmp_path), CODE, output, 3)
    for table, pattern in (("quality.md", r"\d\.\d+ ± .*\]"), ("runs.md", r"\d\.\d+"), ("index.md", r"\d ± .*\]")):
        lines = [line for line in files[table].split("## Checks")[0].splitlines() if "(3 of 40 trained on) |" in line]
        assert len(lines) == (4 if table == "runs.md" else 2)
        for line in lines:
            numbers = [cell.strip() for cell in line.split("|")[3:-1] if cell.strip()]
            assert all(re.fullmatch(rf".*{pattern} \(\d+ of \d+ trained on\)", cell) for cell in numbers), numbers
            assert sum(cell.endswith("(3 of 40 trained on)") for cell in numbers) >= 5
            assert sum("of 50 trained on" in cell for cell in numbers) >= 4
    assert "(7 of 50 trained on)" in files["quality.md"]  # of the seed with the larger share
    assert all(len(re.findall(rf"\| {seen} of 50 +\|", files["reward_parts.md"])) == 5 for seen in (7, 2))
    for name, text in (
        ("learning_curves.svg", "unseen data (7 of 50 trained on)"),
        ("reward_vs_kl.svg", "final policy, unseen prompts (3 of 40 trained on)"),
        ("reward_model.svg", "unseen pairs (7 of 50 trained on)"),
    ):
        assert text in files[name] and "trained on)" not in before[name]
    assert files["samples.md"].count("| yes") == 2
    table = list(csv.DictReader(io.StringIO(files["runs.csv"])))
    assert [(row["seen_in_train"], row["sft_seen_in_train"]) for row in table] == [("3", "7"), ("3", "2")] * 2
    assert table[0]["win_rate"] == "0.71"  # exact tables stay numbers


def test_absent_metrics_are_absent_everywhere(without_gold: Experiment) -> None:
    assert "gold_win_rate" not in quality_csv(without_gold)
    assert "gold win rate" not in to_markdown(*quality_table(without_gold))
    assert "gold_mean" not in quality_rows(without_gold)[0]


def test_resources_convert_units_and_skip_what_was_not_measured(experiment: Experiment) -> None:
    rows = {(row["stage"], row["id"]): row for row in resource_rows(experiment)}
    sft = rows["sft", "tiny-s1-sft"]
    assert (sft["seconds"], sft["processes"], sft["tokens_per_second"]) == (61.5, 1, 900)
    assert sft["peak_rss_mib"] == 570.0
    assert sft["job_max_rss_mib"] == 512.5
    assert "job_cpu_seconds" not in sft and "peak_allocated_mib" not in sft
    assert rows["evaluate_sft", "tiny-s1"] == {"stage": "evaluate_sft", "id": "tiny-s1"}


def test_memory_rows_are_one_for_each_stage_process_and_phase(experiment: Experiment) -> None:
    rows = memory_rows(experiment)
    assert len(rows) == 2 * 4 + 2 * 4 + 4 * 5
    assert rows[1]["peak_rss"] == 390 * 2**20 and "peak_allocated" not in rows[1]


def test_checks_have_one_row_per_inequality_and_violations_first(experiment: Experiment) -> None:
    assert len(check_rows(experiment)) == 4 * 2
    kl, share = check_table(experiment)
    assert (kl["metric"], kl["kind"], kl["holds"], kl["values"], kl["bound"]) == (
        "kl",
        "soft",
        "2 of 4",
        "3 to 12",
        "<= 10",
    )
    assert (share["metric"], share["kind"], share["holds"], share["values"]) == ("eos_share", "hard", "4 of 4", "0.9")


def test_warnings_name_the_run_and_the_value(experiment: Experiment) -> None:
    text = warnings_text(experiment)
    assert text.startswith("8 inequalities were checked on 4 PPO run(s); 2 warning(s)")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines() if "last level" in line]
    assert [row[:2] + row[4:7] for row in rows] == [
        ["| kl_coefficient = 0.0", str(seed), "last level", "&lt;= 10", "12"] for seed in SEEDS
    ]
    fine = Experiment(
        "fine", experiment.runs[:2], {k: experiment.stages[k] for k in map(_ppo_of, experiment.runs[:2])}, Path(".")
    )
    assert warnings_text(fine) == "4 inequalities were checked on 2 PPO run(s); all hold.\n"


def _ppo_of(run: ExperimentRun) -> tuple[str, str]:
    return run.stage("ppo")


@pytest.mark.parametrize("text", ["a|b", "a\nb", "a\r\nb", "`c|d`", "\\|", "<script>", "**bold** [x](y)", "a\\"])
def test_any_text_stays_one_markdown_cell(text: str) -> None:
    table = to_markdown([{"x": text, "y": "end"}], [Column("x", "x", free_text=True), Column("y", "y")])
    assert len(table.splitlines()) == 3
    unescaped = table.splitlines()[2].replace("\\\\", "").replace("\\|", "")
    assert unescaped.count("|") == 3
    assert "<script>" not in table


def test_free_text_is_not_formatted() -> None:
    assert escape_markdown("*a*_b_ & <c>", free_text=True) == r"\*a\*\_b\_ &amp; &lt;c&gt;"
    assert escape_markdown("0.8 [0.7, 0.9]") == "0.8 [0.7, 0.9]"


def test_html_is_escaped() -> None:
    page = to_html([{"x": "<script>alert(1)</script>"}], [Column("x", "a & b")], "t")
    assert "<script>" not in page and "a &amp; b" in page


def test_reward_models_have_a_row_for_each_part_of_the_pairs(experiment: Experiment) -> None:
    rows = [row for row in reward_rows(experiment) if row["id"] == "tiny-s2"]
    assert [(row["part"], row.get("value"), row["pairs"]) for row in rows] == [
        ("all", None, 900),
        ("subset", "chat", 600),
        ("chosen answer", "longer", 600),
        ("length difference", "-9 to -2", 600),
        ("length difference", "-1 to 4", 600),
    ]
    assert rows[0]["accuracy"] == pytest.approx(0.82) and rows[0]["calibration_error"] == 0.02
    assert len(reward_rows(experiment)) == 10
    table = to_markdown(rows, REWARD_COLUMNS)
    assert "0.900" in table.splitlines()[3] and "choosing the longer" in table.splitlines()[0]


def test_bins_of_seeds_are_pooled_by_their_pairs() -> None:
    low, high = {"from": 0.6, "to": 0.65}, {"from": 0.95, "to": 1.0}
    interval = {"observed_low": 0.4, "observed_high": 1.0}
    one = [
        {**high, "pairs": 10, "predicted": 1.0, "observed": 1.0, **interval},
        {**low, "pairs": 100, "predicted": 0.61, "observed": 0.5, **interval},
    ]
    two = [{**low, "pairs": 300, "predicted": 0.63, "observed": 0.7, **interval}]
    curve = pooled([calibration_bins({"calibration": rows}) for rows in (one, two)])
    assert curve.x.tolist() == pytest.approx([0.625, 1.0])
    assert curve.y.tolist() == pytest.approx([0.65, 1.0])


def test_samples_are_cut_limited_and_headed(experiment: Experiment) -> None:
    text = samples_markdown(experiment, 1)
    assert text.count("## kl_coefficient = ") == 2 and "(seed 1)" in text and "(seed 2)" not in text
    assert "x" * (TEXT_LIMIT - 1) + "…" in text and "x" * TEXT_LIMIT not in text
    assert text.count("2.35") == 2
    assert "gold" not in text
    assert text.count("EOS (3 tokens)") == text.count("cut off (24 tokens)") == 2
    page = samples_html(experiment, 2)
    assert page.count("<tr") == 1 + 4
    assert "Write | a\nreview" in page and "\\n" not in page


def test_mean_curve_uses_common_steps() -> None:
    one, two = Curve(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), Curve(np.array([2.0, 3, 4]), np.array([4.0, 5, 6]))
    mean = mean_curve([one, two])
    assert mean.x.tolist() == [2, 3] and mean.y.tolist() == [3, 4]


def test_best_of_n_curve_averages_seeds(experiment: Experiment) -> None:
    stages = experiment.of_runs(experiment.runs[:2], "baseline")
    reference = best_of_n_curve(stages, "score")
    assert reference.x == pytest.approx([math.sqrt(math.log(n) - (n - 1) / n) for n in BEST_OF])
    assert reference.y == pytest.approx([0.15 + math.log(n) for n in BEST_OF])


def test_negative_kl_estimate_counts_as_zero() -> None:
    assert root_of_kl([-0.01, 4.0]).tolist() == [0.0, 2.0]


def test_colours_are_distinct() -> None:
    assert colours(3) == list(PALETTE[:3])
    assert len({tuple(colour) for colour in colours(12)}) == 12


def _svg_size(text: str) -> tuple[float, float]:
    root = ElementTree.fromstring(text)
    width, height = (float(root.attrib[side].removesuffix("pt")) for side in ("width", "height"))
    return width, height


def test_figures_are_deterministic_svg_without_date(experiment: Experiment) -> None:
    for draw in (learning_curves, reward_vs_kl, reward_model, memory):
        text = draw(experiment)
        assert draw(experiment) == text
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert "dc:date" not in text


def test_gold_panel_is_left_out_where_gold_is_not_defined(experiment: Experiment, without_gold: Experiment) -> None:
    assert _svg_size(reward_vs_kl(without_gold))[0] == pytest.approx(
        _svg_size(reward_vs_kl(experiment))[0] / 2, rel=0.1
    )
    assert "gold" not in learning_curves(without_gold)


def test_figures_without_data_say_so() -> None:
    roles = ("sft", "reward", "evaluate_reward", "ppo", "baseline", "evaluate_ppo")
    stages = {(role, "x"): StageFiles(role, "x", Path("x")) for role in roles}
    nothing = Experiment("none", [ExperimentRun({}, 1, dict.fromkeys(roles, "x"))], stages, Path("."))
    assert "no training metrics" in learning_curves(nothing)
    assert "no memory was measured" in memory(nothing)
    assert "no calibration was measured" in reward_model(nothing)
    assert ElementTree.fromstring(reward_vs_kl(nothing)) is not None


def test_the_index_says_what_half_precision_would_lose_and_names_models_that_it_would_spoil(tmp_path: Path) -> None:
    runs = [ExperimentRun(**run) for run in make_experiment(tmp_path)]
    for name, error in (("tiny-s1-sft", 0.7213), ("tiny-s2-sft", 0.0444)):
        path = tmp_path / f"results/sft/{name}/manifest.json"
        merge = {"model": {"dtype": "bf16", "error": error, "limit": 0.05}}
        _write(path, json.loads(path.read_text()) | {"merge": merge})
    files = summarise(read_experiment("reviews", runs, tmp_path), CODE, tmp_path / "results/experiments/reviews", 5)
    models = files["index.md"].split("## Models")[1].split("## Tables")[0]
    assert models.count("- results/sft/") == 2
    spoilt, others = models.split("**Load these in float32**")[1].split("a small share of the change")
    assert "- results/sft/tiny-s1-sft/model: 72.1% (bf16)" in spoilt
    assert "- results/sft/tiny-s2-sft/model: 4.4% (bf16)" in others


def test_summary_links_resolve(tmp_path: Path) -> None:
    experiment = _read(tmp_path)
    files = summarise(experiment, CODE, tmp_path / "results/experiments/reviews", samples=5)
    assert "[tiny-s2-kl0.05](../../ppo/tiny-s2-kl0.05/model)" in files["index.md"]
    assert "- sft tiny-s1-sft" in files["index.md"]
    assert "float32" not in files["index.md"]
    linked = {part.split(")")[0] for part in files["index.md"].split("](")[1:]}
    assert {name for name in linked if not name.startswith("..")} <= set(files)
    assert set(files) - linked == {"index.md"}


WITHOUT_PPO = {"ppo", "evaluate_ppo", "baseline"}
WITHOUT_REWARD = {"reward", "reward_model", "evaluate_reward"}


def _shortened(root: Path, *left_out: set[str]) -> Experiment:
    """The experiment, of which a number of sweep points leave out stages: the first the first set, and so on."""
    runs = make_experiment(root)
    for point, kinds in zip(COEFFICIENTS, left_out, strict=True):
        for run in runs:
            if run["point"]["ppo.kl_coefficient"] == point:
                run["stages"] = {kind: id for kind, id in run["stages"].items() if kind not in kinds}
    return read_experiment("reviews", [ExperimentRun(**run) for run in runs], root)


@pytest.mark.parametrize("left_out", [WITHOUT_PPO, WITHOUT_PPO | WITHOUT_REWARD, WITHOUT_PPO | {"sft", "evaluate_sft"}])
def test_an_experiment_without_ppo_shows_what_it_has(tmp_path: Path, all_files: set[str], left_out: set[str]) -> None:
    shown = _shortened(tmp_path, left_out, left_out)
    files = summarise(shown, CODE, tmp_path / "results/experiments/reviews", samples=5)
    assert files.keys() == all_files  # no old table stays
    index = files["index.md"]
    assert "PPO" not in index and "Win rate" not in index
    linked = {part.split(")")[0] for part in index.split("](")[1:]}
    assert not {"checks.md", "samples.md", "reward_vs_kl.svg"} & linked
    assert ("reward_parts.md" in linked) == ("reward_model.svg" in linked) == ("reward" not in left_out)
    heads = index.split("| run | seed | ")[1].splitlines()[0].strip(" |").split(" | ")
    assert heads == [
        title for phase, title in (("sft", "SFT model"), ("reward", "reward model")) if phase not in left_out
    ]
    widths = {line.count("|") for line in index.split("## Models")[1].split("## Tables")[0].splitlines() if "|" in line}
    assert widths == {3 + len(heads)}
    for name in ("checks.md", "checks.html", "samples.md", "samples.html"):
        assert "leaves out ppo" in files[name]
    assert "no run has PPO" in files["reward_vs_kl.svg"]
    assert ("leaves out reward" in files["reward_parts.md"]) == ("reward" in left_out)
    assert ElementTree.fromstring(files["learning_curves.svg"]).tag.endswith("svg")


def test_runs_with_and_without_ppo_stand_in_one_table(tmp_path: Path, experiment: Experiment) -> None:
    mixed = _shortened(tmp_path, set(), WITHOUT_PPO | WITHOUT_REWARD)
    files = summarise(mixed, CODE, tmp_path / "results/experiments/reviews", samples=5)
    whole, short = run_rows(mixed)[:2], run_rows(mixed)[2:]
    assert whole == run_rows(experiment)[:2]
    assert [row["sft_perplexity"] for row in short] == [3.1, 3.2]
    assert not [key for row in short for key in row if key.startswith(("win", "kl", "reward", "score"))]
    with_ppo, without = quality_rows(mixed)
    assert with_ppo["win_rate_mean"] == pytest.approx(0.715)
    assert (without["seeds"], without["sft_perplexity_mean"]) == (2, pytest.approx(3.15))
    assert "win_rate_mean" not in without
    assert len(check_rows(mixed)) == 4 and warnings_text(mixed).startswith(
        "4 inequalities were checked on 2 PPO run(s)"
    )
    assert files["samples.md"].count("\n## ") == 1
    models = files["index.md"].split("## Models")[1].split("## Tables")[0]
    cells = [line.split(" | ")[2:] for line in models.splitlines() if line.startswith("| kl_coefficient")]
    assert [sum(bool(cell.strip(" |")) for cell in line) for line in cells] == [3, 3, 1, 1]
    trained_alone = [line for line in files["learning_curves.svg"].splitlines() if "all sweep points" in line]
    assert trained_alone and "no run" not in files["reward_vs_kl.svg"]


def test_script_writes_everything_or_nothing(tmp_path: Path) -> None:
    runs = make_experiment(tmp_path)
    _write(tmp_path / "runs.json", runs)
    arguments = ["--experiment", "reviews", "--runs", "runs.json", "--samples", "3", "--output", "out"]
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {
        "index.md",
        "stages.json",
        "quality.csv",
        "runs.md",
        "samples.md",
        "reward_vs_kl.svg",
        "memory.csv",
    } <= written
    (tmp_path / "results/baseline/tiny-s1/evaluation.json").unlink()
    failed = subprocess.run(
        [*command[:-1], "other"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "baseline/tiny-s1" in failed.stderr
    assert not (tmp_path / "other").exists()
