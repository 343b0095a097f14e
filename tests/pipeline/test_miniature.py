"""Every recipe and example, unchanged and by its real names on the hub, in miniature through all rules to its pages.

The hub is the stand-in, with a fault switched on; after the two cache rules there is none at all.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.hub.server import TOKENS, Hub
from tests.hub.texts import pairs
from tests.snakemake import ROOT, snakemake

FILES = {path.stem: path for path in sorted((ROOT / "config").glob("[er]*s/*.yaml"))}
OVERLAY = ROOT / "config/miniature.yaml"
# What goes wrong while a recipe is fetched; each is over when it is asked again, as often as needed.
FAULTS = {
    "opt-13b": {"path": "/resolve/", "kind": "status", "status": 503, "times": 3},
    "opt-1.3b": {"path": "/resolve/", "kind": "status", "status": 429, "headers": {"Retry-After": "1"}, "times": 2},
    "opt-6.7b": {"path": r"\.bin", "kind": "drop", "bytes": 2000, "times": 2},
    "opt-66b": {"path": r"\.bin", "kind": "refuse", "times": 2},
    "llama-2-7b": {"path": "/resolve/", "kind": "slow", "seconds": 0.2},
    "opt-1.3b-single-gpu": {"path": "parquet", "kind": "drop", "bytes": 500, "times": 2},
}


def local_files(folder: Path, hub: Hub) -> None:
    """What `local-files.yaml` finds in `data`: dialogues, instructions, and a model as it was downloaded."""
    data = folder / "data"
    data.mkdir()
    with gzip.open(data / "preferences.jsonl.gz", "wt") as stream:
        for question, good, bad in pairs(80, 3):
            start = f"\n\nHuman: {question}\n\nAssistant:"
            stream.write(json.dumps({"chosen": f"{start} {good}", "rejected": f"{start} {bad}"}) + "\n")
    with (data / "instructions.jsonl").open("w") as lines:
        for question, good, _ in pairs(40, 4):
            lines.write(json.dumps({"instruction": question, "instances": [{"input": "", "output": good}]}) + "\n")
    shutil.copytree(hub.root / "models/meta-llama/Llama-2-7b-hf/main", data / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_runs_to_its_pages(name: str, hub: Hub, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if name == "local-files":
        local_files(work, hub)
    files = ("--cores", "2", "--configfile", str(FILES[name]), str(OVERLAY))
    user = {"HF_TOKEN": TOKENS["member"], "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
    if name in FAULTS:  # the examples need no hub
        hub.faults(FAULTS[name])
        cached = snakemake(work, *files, "--until", "cache_model", "cache_dataset", environment=user)
        assert cached.returncode == 0, cached.stdout[-6000:]
        assert hub.requests
    asked = len(hub.requests)

    nowhere = user | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = snakemake(work, *files, environment=nowhere)
    assert done.returncode == 0, done.stdout[-6000:]
    for experiment in yaml.safe_load(FILES[name].read_text())["experiments"]:
        assert "## Data" in (work / f"results/experiments/{experiment}/index.md").read_text()
    assert snakemake(work, *files, "--report", "report.html", environment=nowhere).returncode == 0
    assert (work / "report.html").stat().st_size > 100_000
    again = snakemake(work, *files, environment=user)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout
    assert len(hub.requests) == asked
    secret = TOKENS["member"].encode()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
