"""The measurement on a GPU, rehearsed on the CPU, so that it works when there is a GPU to run it on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.gpu.cases import TINY

from tests.snakemake import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow
CASES = [case.name for case in TINY.cases]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program writes."""
    output = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "9", "--output", str(output)]
    result = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr + (output / "log.txt").read_text()[-8000:]
    return output


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    """The results as data."""
    (file,) = folder.glob("results-*-cpu.json")
    return json.loads(file.read_text())


def test_all_parts_run_and_what_needs_a_device_says_so(result: dict[str, Any]) -> None:
    states = {name: part["status"] for name, part in result["parts"].items()}
    expected = dict.fromkeys(
        ["machine", "ceilings", "correctness", "material", *CASES, "plain-training", "plain-generation"], "ok"
    )
    assert states == expected | {"ceilings": "not run"}
    assert "needs a CUDA device" in result["parts"]["ceilings"]["message"]
    assert "not run on a device" in result["parts"]["correctness"]["note"]
    assert result["machine"]["card"] is None
    assert len(result["code"]["commit"].split("-")[0]) == 40


def test_the_tests_of_a_device_are_rehearsed_or_named(result: dict[str, Any]) -> None:
    tests = result["parts"]["correctness"]["tests"]
    outcomes = {outcome: [test for test in tests if test["outcome"] == outcome] for outcome in ("passed", "skipped")}
    assert len(outcomes["passed"]) + len(outcomes["skipped"]) == len(tests)
    assert len(outcomes["passed"]) > 30
    assert all("not in a rehearsal" in test["message"] for test in outcomes["skipped"])
    assert any(test["measured"].get("gradient") == 0.0 for test in outcomes["passed"])  # the CPU beside itself


@pytest.mark.parametrize("name", CASES)
def test_memory_stands_beside_its_plan(result: dict[str, Any], name: str) -> None:
    memory = result["parts"][name]["memory"]
    assert {"load", "train", "save"} <= {phase["phase"] for phase in memory["phases"]}
    assert all(phase["planned"] > 0 and phase["measured"] > 0 for phase in memory["phases"])
    assert "peak_device" not in memory  # there is no device: nothing stands for it


@pytest.mark.parametrize("name", [*CASES, "plain-training"])
def test_speed_counts_useful_tokens(result: dict[str, Any], name: str) -> None:
    speed = result["parts"][name]["speed"]
    assert speed["tokens_per_second"] > 0 and speed["flops_per_second"] > 0
    assert "mfu" not in speed
    tokens = speed["tokens_per_second"] * speed["seconds_per_step"]
    longest = TINY.prompt + TINY.answer
    sequences = TINY.samples if name.startswith("ppo") else TINY.batch
    assert sequences < tokens <= 1.001 * sequences * longest


def test_phases_of_ppo_make_up_its_time(result: dict[str, Any]) -> None:
    speed = next(result["parts"][name]["speed"] for name in CASES if name.startswith("ppo"))
    assert speed["phases"].keys() == {"generate", "score", "train", "rest"}
    assert sum(phase["share"] for phase in speed["phases"].values()) == pytest.approx(1)
    assert result["parts"]["plain-generation"]["speed"]["generated_per_second"] > 0


def test_the_page_shows_every_part_and_number(folder: Path, result: dict[str, Any]) -> None:
    (page,) = (file.read_text() for file in folder.glob("results-*-cpu.md"))
    for name in result["parts"]:
        assert f"| {name} |" in page
    for heading in ("Parts", "Right on the device", "Memory by its plan", "Speed", "Phases of PPO"):
        assert f"\n## {heading}\n" in page
    assert f"| {result['parts'][CASES[0]]['speed']['tokens_per_second']:,.0f} |" in page


def test_a_part_that_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    """By a worker that ends: the program has a traceback of one part, and results of the rest."""
    output = tmp_path / "output"
    program = (
        "import sys; from benchmarks.gpu import measured, measurement, __main__ as program\n"
        "def broken(self, found): raise measurement.JobFailed('planted', 'its traceback')\n"
        "measurement.Measurement._ceilings = lambda self, worker, found: broken(self, found)\n"
        f"sys.argv = ['gpu', '--tiny', '--only', 'ceilings', 'plain-gen', '--output', {str(output)!r}]\n"
        "program.main()"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    (file,) = output.glob("results-*-cpu.json")
    parts = json.loads(file.read_text())["parts"]
    assert (parts["ceilings"]["status"], parts["ceilings"]["message"]) == ("failed", "planted")
    assert parts["plain-generation"]["status"] == "ok"
    assert "its traceback" in next(output.glob("*.md")).read_text()


def test_without_time_each_part_is_named_as_not_done(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--minutes", "0.1", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    (file,) = tmp_path.glob("results-*.json")
    states = {name: part["status"] for name, part in json.loads(file.read_text())["parts"].items()}
    assert set(states.values()) <= {"out of time", "not run"}
    assert set(CASES) <= states.keys()
