"""The commands that stand before Slurm's own, with commands of Slurm that say what they are told to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rlhf.config import stand_before_slurm
from rlhf.runtime import patience

STAND_INS = Path(__file__).resolve().parents[2] / "workflow/scripts/slurm"
FULL = "sbatch: error: QOSMaxSubmitJobPerUserLimit\\nsbatch: error: Batch job submission failed: (job submit limit)"
AWAY = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
BUSY = "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Slurm's commands, on a PATH which has the stand-ins first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("RLHF_PYTHON", "RLHF_SNAKEMAKE"):
        monkeypatch.setenv(name, "")  # to be as before in the end
    stand_before_slurm(str(STAND_INS), os.environ)
    monkeypatch.setattr(patience, "ASK_AGAIN_SECONDS", 0)
    return folder


def command(folder: Path, name: str, script: str) -> str:
    """A command that notes each of its calls in `calls`."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{script}\n')
    path.chmod(0o755)
    return str(path)


def refuse(folder: Path, message: str, times: int) -> str:
    """An sbatch that refuses a number of times."""
    taken = f"[ $(wc -l < {folder}/calls) -gt {times} ] && echo 7 && exit"
    return command(folder, "sbatch", f"{taken}\nprintf '{message}\\n' >&2\nexit 1")


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("message", [FULL, AWAY, BUSY])
def test_a_submission_is_repeated_until_it_is_taken_and_the_user_is_told_once(bin, capfd, message):
    real = refuse(bin, message, 3)
    assert patience.submit([real, "-p", "gpu"], "") == 0
    out, err = capfd.readouterr()
    assert out == "7\n"
    assert calls(bin) == ["sbatch -p gpu"] * 4
    assert err.count("Slurm says: ") == 1


def test_any_other_refusal_stands(bin, capfd):
    real = refuse(bin, "sbatch: error: invalid partition specified: gpus", 1)
    assert patience.submit([real], "") == 1
    assert "invalid partition" in capfd.readouterr().err
    assert len(calls(bin)) == 1


def test_a_submission_that_timed_out_is_not_repeated(bin, capfd):
    """Its job may be in the queue."""
    real = refuse(bin, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", 1)
    assert patience.submit([real], "") == 1


def test_nothing_is_submitted_for_a_snakemake_that_is_gone(bin, capfd, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setenv("RLHF_SNAKEMAKE", str(ended.pid))
    assert patience.submit([refuse(bin, FULL, 3)], "") == 1
    assert len(calls(bin)) == 1


def test_a_screen_that_cannot_be_written_to_does_not_matter(bin, capfd, monkeypatch):
    monkeypatch.setenv("RLHF_SNAKEMAKE", "0")  # a process without a screen
    monkeypatch.setattr(patience, "snakemake_lives", lambda: True)
    assert patience.submit([refuse(bin, FULL, 2)], "") == 0
    assert "Slurm says: " in capfd.readouterr().err


def test_patience_has_an_end(bin, capfd, monkeypatch):
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1)
    assert patience.submit([refuse(bin, FULL, 3)], "") == 1
    assert "QOSMaxSubmitJobPerUserLimit" in capfd.readouterr().err


def test_states_are_those_of_the_queue_and_of_accounting_for_what_has_left_it(bin):
    command(bin, "squeue", "printf '1|RUNNING\\n2|CANCELLED\\n'")
    command(bin, "sacct", "printf '1|PENDING\\n3|CANCELLED by 0\\n4|COMPLETED\\n'")
    done = run("sacct", "-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", "--name", "the-run")
    assert set(done.stdout.splitlines()) == {"1|RUNNING", "2|CANCELLED", "3|CANCELLED", "4|COMPLETED"}
    assert done.returncode == 0
    assert "squeue --states=all --noheader --format=%i|%T --name the-run" in calls(bin)


def test_accounting_that_is_off_does_not_matter(bin, monkeypatch):
    monkeypatch.setenv("PATH", f"{STAND_INS}:{bin}")
    command(bin, "squeue", "echo '1|COMPLETED'")
    command(bin, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    done = run("sacct", "--name", "the-run")
    assert (done.returncode, done.stdout) == (0, "1|COMPLETED\n")
    (bin / "sacct").unlink()
    assert run("sacct", "--name", "the-run").stdout == "1|COMPLETED\n"


def test_without_the_controller_no_state_is_known(bin):
    """An empty answer would be taken for jobs that have not come up yet; a failure is asked again."""
    command(bin, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    command(bin, "sacct", "echo '1|RUNNING'")
    done = run("sacct", "--name", "the-run")
    assert (done.returncode, done.stdout) == (1, "")


def test_other_questions_to_accounting_are_passed_on(bin):
    command(bin, "sacct", "echo answer; exit 3")
    done = run("sacct", "-n", "-j", "7")
    assert (done.returncode, done.stdout) == (3, "answer\n")
    assert calls(bin) == ["sacct -n -j 7"]


def test_the_stand_in_submits_with_its_input(bin, tmp_path, monkeypatch):
    command(bin, "sbatch", "cat; echo 8")
    (tmp_path / "again").symlink_to(STAND_INS)  # it does not find itself under another name
    monkeypatch.setenv("PATH", f"{tmp_path / 'again'}:/no/such/folder:{os.environ['PATH']}")
    done = run("sbatch", "--parsable", "/dev/stdin", text="#!/bin/sh\n")
    assert (done.returncode, done.stdout) == (0, "#!/bin/sh\n8\n")
    assert calls(bin) == ["sbatch --parsable /dev/stdin"]


def test_a_command_that_slurm_does_not_have_is_not_found(bin, monkeypatch):
    monkeypatch.setenv("PATH", f"{STAND_INS}:{bin}")
    done = run("sbatch", "job.sh")
    assert done.returncode == 127
    assert "sbatch: not found" in done.stderr
