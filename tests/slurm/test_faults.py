"""What clusters do to a stage: it goes on from what it saved, once, with one writer; or it fails and says why.

The stage is a counting trainer (stub.py), started by the real launcher under the real profile with other timers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rlhf.config import stand_before_slurm
from tests.slurm.conftest import CLUSTER
from tests.slurm.project import WAIT_SECONDS, Stub, end, slurm, status, wait_until, write_profile
from tests.snakemake import ENVIRONMENT, ROOT


def expect_resumed(stub: Stub, *, saved_by_signal: bool = True) -> None:
    """The stage was started twice, the second time from where the first one was, and never twice at once."""
    first, second = stub.starts()
    assert first["step"] == 0
    assert stub.result() >= second["step"] > (5 if saved_by_signal else 0)
    assert not any("refused" in start for start in stub.starts())


@pytest.mark.slurm("accounting")
def test_the_trainer_is_a_child_of_slurm_and_sees_its_gpus(stub: Stub) -> None:
    """slurmstepd tells its direct child of a SIGTERM, and nobody else."""
    process = stub.start(execution={"gpus_per_node": 1, "environment": {"OMP_NUM_THREADS": 3}})
    start = stub.wait_for_start(1)
    assert start["parent"].startswith("slurmstepd")
    assert start["gpus"] in {"0", "1", "2", "3"}
    assert start["cpus"] == "3"
    assert start["routes"] == []  # no network at all where the jobs run
    stub.finish(process)
    assert stub.jobs() == ["COMPLETED"]


@pytest.mark.slurm("accounting")
def test_a_cancelled_stage_goes_on_from_what_it_saved(stub: Stub) -> None:
    """With sacct as status command it would never be noticed."""
    process = stub.start()
    slurm("scancel", stub.wait_for_start(1)["job"])
    stub.wait_for_start(2)
    stub.finish(process)
    expect_resumed(stub)
    assert sorted(stub.jobs()) == ["CANCELLED", "COMPLETED"]


@pytest.mark.slurm("accounting")
def test_a_slow_save_is_asked_for_once(stub: Stub) -> None:
    """A second SIGTERM would end a trainer without saving; Slurm may repeat the first within a moment only."""
    process = stub.start(words="--save-seconds 6")
    slurm("scancel", stub.wait_for_start(1)["job"])
    stub.wait_for_start(2)
    asked = json.loads((stub.state / "asked").read_text())
    assert max(asked) < 1, asked
    stub.finish(process)
    expect_resumed(stub)


@pytest.mark.slurm("plain")
def test_without_accounting_a_cancelled_stage_goes_on_as_well(stub: Stub) -> None:
    """With the plugin's default, Snakemake would wait for ever for any job."""
    process = stub.start()
    slurm("scancel", stub.wait_for_start(1)["job"])
    stub.wait_for_start(2)
    stub.finish(process)
    expect_resumed(stub)


@pytest.mark.slurm("accounting")
def test_a_stage_is_warned_before_its_time_limit_and_goes_on_in_a_new_job(stub: Stub) -> None:
    process = stub.start(runtime=1)
    stub.wait_for_start(2)
    stub.finish(process)
    expect_resumed(stub)
    first = stub.starts()[0]["job"]
    assert slurm("sacct", "-X", "-n", "-j", first, "-o", "State").split() == ["FAILED"]  # by itself, not TIMEOUT


@pytest.mark.slurm("accounting")
def test_a_preempted_stage_goes_on_in_the_same_job(stub: Stub) -> None:
    process = stub.start(profile=write_profile(stub.folder, "preemptible"))
    first = stub.wait_for_start(1)["job"]
    cpus = slurm("sinfo", "-h", "-p", "urgent", "-o", "%c").strip()
    slurm("sbatch", "-p", "urgent", f"-n{cpus}", "-o", "/dev/null", "--wrap", "sleep 2")
    assert stub.wait_for_start(2)["job"] == first
    stub.finish(process)
    expect_resumed(stub)


@pytest.mark.slurm("accounting")
def test_a_stage_whose_node_dies_goes_on_in_the_same_job(stub: Stub) -> None:
    process = stub.start(words="--save-always", profile=write_profile(stub.folder, "fragile"))
    first = stub.wait_for_start(1)
    subprocess.run([CLUSTER, "crash", first["node"]], check=True)
    wait_until(lambda: "down" in slurm("sinfo", "-h", "-p", "fragile", "-o", "%T"), "the node is missed")
    subprocess.run([CLUSTER, "revive", first["node"]], check=True)
    assert stub.wait_for_start(2)["job"] == first["job"]
    stub.finish(process)
    expect_resumed(stub)


@pytest.mark.slurm("accounting")
def test_a_stage_killed_for_its_memory_says_so(stub: Stub) -> None:
    process = stub.start("--retries", "0", words="--fill-mb 100", mem_mb=600)
    assert process.wait(WAIT_SECONDS) == 1
    assert "oom" in stub.log().lower() or "out of memory" in stub.log().lower(), stub.log()
    said = stub.output()
    assert "Out Of Memory" in said or "exceeded memory limit" in said, said[-4000:]
    assert len(stub.starts()) == 1


@pytest.mark.slurm("accounting")
def test_retries_are_not_multiplied(stub: Stub) -> None:
    """The Snakemakes inside a job must not retry by themselves."""
    process = stub.start("--retries", "1", words="--fail")
    assert process.wait(WAIT_SECONDS) == 1
    assert len(stub.starts()) == 2
    assert stub.jobs() == ["FAILED", "FAILED"]


@pytest.mark.slurm("accounting")
def test_ctrl_c_cancels_the_jobs_which_save(stub: Stub) -> None:
    process = stub.start()
    stub.wait_for_start(1)
    asked = stub.folder / "asked"  # while Snakemake asks for states, it knows of no jobs to cancel
    wait_until(lambda: asked.exists() and time.time() - asked.stat().st_mtime < 0.5, "a question has been answered")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(WAIT_SECONDS) != 0
    wait_until(
        lambda: stub.jobs() == ["CANCELLED"],
        "the job is cancelled",
        note=lambda: f"{stub.jobs()} {stub.output()[-3000:]}",
    )
    stub.finish(stub.start())
    expect_resumed(stub)


@pytest.mark.slurm("accounting")
def test_a_killed_snakemake_is_not_started_beside_its_own_jobs(stub: Stub) -> None:
    first = stub.start()
    job = stub.wait_for_start(1)["job"]
    end(first)
    stub.start("--unlock").wait(60)
    assert stub.start().wait(60) == 1
    assert f"scancel {job}" in stub.output()
    assert stub.jobs() == ["RUNNING"]
    slurm("scancel", job)
    wait_until(lambda: stub.jobs() == ["CANCELLED"], "the job is cancelled")
    stub.finish(stub.start())
    expect_resumed(stub)


LAB = Path("/run/slurm-lab")


def expect_outlived(stub: Stub, daemons: tuple[str, ...]) -> None:
    """A stage ends while daemons are away; Snakemake waits for them, and nothing is run again."""
    process = stub.start()
    job = stub.wait_for_start(1)["job"]
    # A controller that is killed before it has noted the start starts the job once more; it notes what has changed.
    started = time.time()
    slurm("scontrol", "update", f"JobId={job}", "AdminComment=started")
    saved = LAB / "ctld/job_state"
    wait_until(lambda: saved.exists() and saved.stat().st_mtime > started, "the controller notes its jobs")
    for daemon in daemons:
        os.kill(int((LAB / f"pid/{daemon}.pid").read_text()), signal.SIGKILL)
    (stub.state / "finish").touch()
    wait_until((stub.folder / "results/sft/stub/manifest.json").exists, "the stage ends")
    time.sleep(15)
    assert process.poll() == (None if "slurmctld" in daemons else 0)
    subprocess.run([CLUSTER, "restart", *daemons], check=True)
    stub.finish(process)
    assert len(stub.starts()) == 1


@pytest.mark.slurm("outage")
@pytest.mark.parametrize("daemons", [("slurmdbd",), ("slurmctld",), ("slurmdbd", "slurmctld")], ids="+".join)
def test_a_stage_outlives_database_and_controller(stub: Stub, daemons: tuple[str, ...]) -> None:
    expect_outlived(stub, daemons)


@pytest.mark.slurm("plain outage")
def test_without_accounting_a_stage_outlives_the_controller(stub: Stub) -> None:
    """The plugin alone would ask sacct from then on, which never answers."""
    expect_outlived(stub, ("slurmctld",))


@pytest.mark.slurm("outage")
def test_a_submission_waits_for_the_controller(tmp_path: Path) -> None:
    os.kill(int((LAB / "pid/slurmctld.pid").read_text()), signal.SIGKILL)
    environment = ENVIRONMENT.copy()
    stand_before_slurm(str(ROOT / "workflow/scripts/slurm"), environment)
    said = tmp_path / "said"
    with said.open("w") as output:
        command = ["sbatch", "--parsable", "-n1", "-o", "/dev/null", "--wrap", "true"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    time.sleep(25)  # the real one gives up within seconds
    assert process.poll() is None, said.read_text()
    subprocess.run([CLUSTER, "restart", "slurmctld"], check=True)
    assert process.wait(WAIT_SECONDS) == 0
    assert said.read_text().strip().isdigit()


@pytest.mark.slurm("accounting")
def test_a_full_queue_is_waited_out(stub: Stub) -> None:
    job = slurm("sbatch", "--parsable", "--qos=narrow", "-n1", "-o", "/dev/null", "--wrap", "sleep 600").strip()
    process = stub.start("--retries", "0", profile=write_profile(stub.folder, qos="narrow"))
    wait_until(lambda: "Slurm says: QOSMaxSubmitJobPerUserLimit" in stub.output(), "the queue is full")
    time.sleep(12)  # tried again
    assert process.poll() is None
    assert stub.jobs() == []
    slurm("scancel", job)
    stub.wait_for_start(1)
    stub.finish(process)
    assert stub.jobs() == ["COMPLETED"]


# The main process with another view of the results than the jobs have.
LAGGING = ["unshare", "--mount", "sh", "-c", 'mount --bind seen results && exec "$@"', "sh"]


@pytest.mark.slurm("accounting")
def test_a_file_system_that_shows_results_late_is_waited_for(stub: Stub) -> None:
    for name in ("results", "seen"):
        (stub.folder / name).mkdir()
    process = stub.start(before=LAGGING)
    stub.wait_for_start(1)
    (stub.state / "finish").touch()
    wait_until(lambda: "Waiting at most 10 seconds for missing files" in stub.output(), "the main process sees nothing")
    assert process.poll() is None
    shutil.copytree(stub.folder / "results", stub.folder / "seen", dirs_exist_ok=True)
    stub.finish(process)
    assert stub.jobs() == ["COMPLETED"]


@pytest.mark.slurm("outage")
def test_accounting_that_does_not_answer_holds_nothing_up(stub: Stub) -> None:
    daemon = int((LAB / "pid/slurmdbd.pid").read_text())
    os.kill(daemon, signal.SIGSTOP)
    try:
        process = stub.start()
        stub.wait_for_start(1)
        stub.finish(process)
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert stub.jobs() == ["COMPLETED"]


@pytest.mark.slurm("outage")
def test_a_node_that_comes_back_late_gives_a_stage_no_second_writer(stub: Stub) -> None:
    """Its daemon was away; the trainer was not, and still works when Slurm starts the stage again."""
    process = stub.start(words="--save-always", profile=write_profile(stub.folder, "fragile"))
    first = stub.wait_for_start(1)
    os.kill(int((LAB / f"pid/slurmd-{first['node']}.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: stub.jobs() == ["PENDING"], "the job is back in the queue")
    shown = status(stub.folder)
    assert "queued" in shown and "/ 1.0 GB" in shown and "sft stub: " in shown, shown  # and Slurm's reason
    step = int((stub.state / "step").read_text())
    wait_until(lambda: int((stub.state / "step").read_text()) > step, "the trainer still works")
    subprocess.run([CLUSTER, "revive", first["node"]], check=True)
    stub.wait_for_start(2)
    stub.finish(process)
    expect_resumed(stub)
    assert [start["job"] for start in stub.starts()] == [first["job"]] * 2
