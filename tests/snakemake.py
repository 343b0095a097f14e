"""Running Snakemake on the project from tests."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hf_TheSecretOfTheEnvironment0123456789"
ENVIRONMENT = os.environ | {
    # Whoever runs the workflow has secrets; `leaks` looks for them in what it leaves.
    **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"), SECRET),
    # As in an activated environment: rules call `python` and `deepspeed`.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT / "workflow"),
    # Where DeepSpeed would put operators that it compiles at run time.
    "TORCH_EXTENSIONS_DIR": tempfile.mkdtemp(prefix="torch-extensions-"),
}


def free_port() -> int:
    """A port on which several processes can meet, whatever else runs on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def run_processes(count: int, *program: object, timeout: int, **environment: str) -> str:
    """Run a program of several processes on this machine, one thread each, to its end without an error; its output."""
    launcher = [sys.executable]
    if count > 1:
        launcher = ["deepspeed", "--num_gpus", str(count), "--master_port", str(free_port())]
    result = subprocess.run(
        [*launcher, *map(str, program)],
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:]
    return result.stdout


def snakemake(
    directory: Path, *arguments: str, timeout: int = 1200, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
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
        env=ENVIRONMENT | (environment or {}),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def leaks(directory: Path) -> list[str]:
    """Files of a working directory that hold a secret of the environment, Snakemake's own records included."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path.relative_to(directory).as_posix() for path in files if SECRET.encode() in path.read_bytes()]


def write_config(directory: Path, config: dict[str, Any], name: str = "config.yaml") -> Path:
    """Write a configuration file."""
    path = directory / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def dry_run(
    directory: Path, config: Path, *arguments: str, environment: dict[str, str] | None = None
) -> dict[str, int]:
    """Rule -> number of jobs that a dry run would run; empty where there is nothing to do."""
    result = snakemake(directory, "--dry-run", "--configfile", str(config), *arguments, environment=environment)
    assert result.returncode == 0, result.stdout
    if "Nothing to be done" in result.stdout:
        return {}
    table = result.stdout.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}
