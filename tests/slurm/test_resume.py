"""Real training stages that a cluster interrupts: they save when they are told, and go on from there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.project import tiny_config
from tests.slurm.project import end, slurm, start_snakemake, status, wait_until, write_profile
from tests.slurm.test_workflow import SNAKEFILE, plan_of, run
from tests.snakemake import write_config


def jobs_in(folder: Path) -> list[str]:
    lines = slurm("squeue", "-h", "-t", "all", "-o", "%i|%T|%Z").splitlines()
    return [line.rsplit("|", 1)[0] for line in lines if line.endswith(f"|{folder}")]


@pytest.mark.slurm("accounting")
@pytest.mark.parametrize("gpus", [1, 2])
def test_a_cancelled_training_goes_on_where_it_was(tmp_path: Path, gpus: int) -> None:
    """On one and on two processes, of which each is told by Slurm."""
    config = tiny_config()
    sft = config["defaults"]["sft"] | {"num_train_epochs": 80}
    sft["execution"] = {
        "gpus_per_node": gpus,
        "environment": {"DS_ACCELERATOR": "cpu"},
        "mem_mb": 3000,
        "runtime": 20,
        "checkpoint_minutes": None,
        "keep_state": True,
    }
    config["defaults"]["sft"] = sft
    plan = plan_of(config, tmp_path)
    stage = plan.stages["sft", plan.runs[0].stages["sft"]]
    made = [f"results/tokens/{id}" for id in stage.upstream.tokens]
    made += [f"results/split/{id}/rows" for id in stage.upstream.split]
    made += [f"resources/models/{stage.upstream.model}/model"]
    made += [f"results/sft/{stage.id}/{name}" for name in ("spec.yaml", "memory_plan.json")]
    made += [f"results/check_rows/sft/{stage.id}/rows.json"]
    given = ("--configfile", write_config(tmp_path, config))
    run(tmp_path, "--cores", "2", *given, "--", *made)
    target = f"results/sft/{stage.id}/manifest.json"
    profile = ("--profile", write_profile(tmp_path))
    process = start_snakemake(
        tmp_path, SNAKEFILE, *map(str, (*profile, *given, "--allowed-rules", "train_sft", "--", target))
    )
    try:
        progress = tmp_path / f"state/sft/{stage.id}/progress.json"

        def is_training() -> bool:
            assert process.poll() is None, (tmp_path / "snakemake.out").read_text()[-5000:]
            return progress.exists() and (json.loads(progress.read_text())["step"] or 0) > 5

        wait_until(is_training, "steps")
        job = jobs_in(tmp_path)[0].split("|")[0]
        shown = status(tmp_path)
        assert re.search(rf"{stage.id}.* running .*/320 .* / 3\.0 GB .* {job} .* n[12] .* loss \d", shown), shown
        slurm("scancel", job)
        assert process.wait(300) == 0, (tmp_path / "snakemake.out").read_text()[-5000:]
    finally:
        end(process)
    assert sorted(job.split("|")[1] for job in jobs_in(tmp_path)) == ["CANCELLED", "COMPLETED"]
    manifest = json.loads((tmp_path / target).read_text())
    assert manifest["attempts"] == 2
    resumed = manifest["checkpoints"]["resumed_from_step"]
    assert resumed is not None and resumed > 5, (progress.parent / "logs/attempt-1.log").read_text()[-3000:]
    assert manifest["steps"]["done"] == manifest["steps"]["planned"]
    assert manifest["world_size"] == gpus
