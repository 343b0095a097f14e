"""`rlhf-status` on synthetic state and result folders."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.commands import status
from rlhf.commands.status import key_metrics, parse_args, show, status_table
from rlhf.errors import UserError
from rlhf.files import TAIL_BYTES
from rlhf.reporting.stage_status import StageStatus, read_status

NOW = 1_800_000_000.0


def _progress(root: Path, stage: str = "sft", identifier: str = "tiny-1", **changes: Any) -> None:
    content = {
        "step": 30,
        "total_steps": 120,
        "speed": 1234.5,
        "eta_seconds": 95.0,
        "updated": NOW - 5,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "status": "running",
        "metrics": {"step": 30, "phase": "train", "loss": 1.25},
    }
    folder = root / "state" / stage / identifier
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(json.dumps({**content, **changes}))


def _result(root: Path, stage: str, identifier: str, finished: float = NOW, **files: str) -> Path:
    folder = root / "results" / stage / identifier
    folder.mkdir(parents=True)
    manifest = {"wall_seconds": 61.0, "finished": datetime.fromtimestamp(finished, UTC).isoformat()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name, text in files.items():
        (folder / name.replace("_json", ".json")).write_text(text)
    return folder


def _text(root: Path) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(status_table(read_status(root, NOW), root))
    return capture.get()


def _gone_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_running_stage(tmp_path: Path) -> None:
    _progress(tmp_path)
    (entry,) = read_status(tmp_path, NOW)
    assert (entry.status, entry.step, entry.total_steps, entry.speed, entry.seconds) == (
        "running",
        30,
        120,
        1234.5,
        95.0,
    )
    line = next(line for line in _text(tmp_path).splitlines() if "tiny-1" in line)
    for shown in ("sft", "running", "30/120", "1,234", "1:35 left", "loss 1.25"):
        assert shown in line


@pytest.mark.parametrize(
    ("changes", "status", "why"),
    [
        ({"updated": NOW - 119}, "running", ""),
        ({"updated": NOW - 130}, "stalled", "no news for 2:10"),
        ({"updated": NOW - 130, "host": "elsewhere"}, "stalled", "from elsewhere"),
        ({"pid": 1}, "running", ""),
        ({"status": "failed"}, "failed", ""),
        ({"status": "done"}, "done", ""),
    ],
)
def test_status_is_judged_from_silence_and_process(
    tmp_path: Path, changes: dict[str, Any], status: str, why: str
) -> None:
    _progress(tmp_path, **changes)
    (entry,) = read_status(tmp_path, NOW)
    assert entry.status == status
    assert why in entry.note


def test_a_gone_process_counts_on_this_host_only(tmp_path: Path) -> None:
    pid = _gone_pid()
    _progress(tmp_path, "sft", pid=pid)
    _progress(tmp_path, "reward", pid=pid, host="elsewhere")
    here, elsewhere = read_status(tmp_path, NOW)
    assert (here.status, here.note) == ("stalled", f"process {pid} is gone")
    assert elsewhere.status == "running"
    assert here.seconds is None and here.speed is None  # no ETA for what does not move


def test_a_failed_stage_shows_the_end_of_its_log(tmp_path: Path) -> None:
    _progress(tmp_path, "ppo", "p-1", status="failed")
    log = tmp_path / "logs/ppo/p-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("start\nerror: ppo.minibatches [3] is odd\n\n")
    assert "ppo p-1: error: ppo.minibatches [3] is odd (see logs/ppo/p-1.log)" in _text(tmp_path)


def test_done_stage_shows_time_and_metrics(tmp_path: Path) -> None:
    folder = _result(tmp_path, "sft", "tiny-1")
    rows = [
        {"step": 1, "phase": "train", "time": 0.5, "loss": 9.0},
        {"step": 1, "phase": "eval", "time": 0.75, "loss": 1.5, "perplexity": 4.5},
        {"step": 2, "phase": "train", "time": 1.25, "loss": 1.25},
    ]
    filler = "x" * TAIL_BYTES  # only the end of a long file is read
    (folder / "metrics.jsonl").write_text(filler + "\n" + "".join(json.dumps(row) + "\n" for row in rows))
    line = next(line for line in _text(tmp_path).splitlines() if "tiny-1" in line)
    for shown in ("done", "1:01", "loss 1.5", "perplexity 4.5"):
        assert shown in line
    assert "left" not in line


def test_evaluation_shows_its_numbers_in_workflow_order(tmp_path: Path) -> None:
    _result(tmp_path, "evaluate_ppo", "p", evaluation_json=json.dumps({"win_rate": 0.8125, "kl": 3.21}))
    _result(tmp_path, "evaluate_reward", "r", evaluation_json=json.dumps({"accuracy": 0.75}))
    first, second = read_status(tmp_path, NOW)
    assert (first.stage, key_metrics(first)) == ("evaluate_reward", "accuracy 0.75")
    assert key_metrics(second) == "win_rate 0.812  kl 3.21"


@pytest.mark.parametrize(("updated", "status"), [(NOW - 10, "done"), (NOW - 1, "running")])
def test_a_manifest_wins_over_older_progress_only(tmp_path: Path, updated: float, status: str) -> None:
    _result(tmp_path, "sft", "tiny-1", finished=NOW - 5)
    _progress(tmp_path, updated=updated)
    assert [entry.status for entry in read_status(tmp_path, NOW)] == [status]


def test_devices_are_shown_where_there_are_any(tmp_path: Path) -> None:
    folder = _result(tmp_path, "reward", "r")
    assert "GPUs" not in _text(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"gpus": "0"}))
    _progress(tmp_path, gpus="2,3")
    assert [(entry.stage, entry.gpus) for entry in read_status(tmp_path, NOW)] == [("sft", "2,3"), ("reward", "0")]
    text = _text(tmp_path)
    assert "GPUs" in text
    assert re.search(r"tiny-1 .* 2,3 +.*loss 1\.25", text)


def test_broken_files_are_reported_not_fatal(tmp_path: Path) -> None:
    _progress(tmp_path)
    (tmp_path / "state/sft/tiny-1/progress.json").write_text("{")
    _result(tmp_path, "reward", "r")
    (tmp_path / "results/reward/r/manifest.json").write_text("[]")
    assert [entry.status for entry in read_status(tmp_path, NOW)] == ["unreadable", "unreadable"]
    assert "state/sft/tiny-1/progress.json is broken" in _text(tmp_path)


def test_counts_are_shown(tmp_path: Path) -> None:
    _progress(tmp_path)
    _progress(tmp_path, "reward", status="failed")
    assert "1 running, 1 failed" in _text(tmp_path)


def test_metrics_that_are_not_numbers_are_left_out() -> None:
    assert (
        key_metrics(StageStatus("ppo", "p", "running", metrics={"score": 1.5, "kl": None, "gold": "x"})) == "score 1.5"
    )
    assert key_metrics(StageStatus("tokens", "t", "done")) == ""


def test_empty_folder_gets_a_friendly_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(parse_args(["--root", str(tmp_path)]))
    assert "Nothing has run yet" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--root", "/no/such/folder"], ["--root", ".", "--watch", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"--root|--watch"):
        show(parse_args(arguments))


def test_watch_refreshes_until_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _progress(tmp_path, updated=time.time())
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(status, "queue", lambda root: ({}, ""))  # a wait for squeue would sleep as well
    show(parse_args(["--root", str(tmp_path), "--watch", "2"]))
    assert waits == [2.0, 2.0, 2.0]


def test_import_is_light() -> None:
    heavy = ("torch", "pandas", "matplotlib", "numpy", "scipy")
    code = f"import sys, rlhf.commands.status; print([name for name in {heavy!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "workflow")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
