"""Running Snakemake on the project from tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {
    # As in an activated environment: rules call `python` and `deepspeed`.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT / "workflow"),
    # Where DeepSpeed would put operators that it compiles at run time.
    "TORCH_EXTENSIONS_DIR": tempfile.mkdtemp(prefix="torch-extensions-"),
}


def snakemake(directory: Path, *arguments: str, timeout: int = 1200) -> subprocess.CompletedProcess[str]:
    """Run Snakemake with `directory` as its working directory; output and errors are returned together."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        directory,
        *arguments,
    ]
    return subprocess.run(
        list(map(str, command)),
        env=ENVIRONMENT,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def write_config(directory: Path, config: dict[str, Any], name: str = "config.yaml") -> Path:
    """Write a configuration file."""
    path = directory / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def dry_run(directory: Path, config: Path, *arguments: str) -> dict[str, int]:
    """Rule -> number of jobs that a dry run would run; empty where there is nothing to do."""
    result = snakemake(directory, "--dry-run", "--configfile", str(config), *arguments)
    assert result.returncode == 0, result.stdout
    if "Nothing to be done" in result.stdout:
        return {}
    table = result.stdout.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}
