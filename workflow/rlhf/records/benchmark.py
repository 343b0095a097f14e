"""benchmarks/STAGE/ID.jsonl: what Snakemake measured of a stage's job. Snakemake writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict, cast

from rlhf.files import read_jsonl


class Benchmark(TypedDict, total=False):
    """One attempt of a job; `NA` where it was too short to be measured.

    Attributes:
        s: wall-clock seconds.
        max_rss: largest resident memory of the job's processes together, MiB.
        cpu_time: seconds.
    """

    s: float | Literal["NA"]
    max_rss: float | Literal["NA"]
    cpu_time: float | Literal["NA"]


def read_benchmark(file: Path) -> Benchmark | None:
    """The last attempt; None where nothing was measured.

    Raises:
        UserError: the file is damaged.
    """
    rows = read_jsonl(file) if file.exists() else []
    return cast(Benchmark, rows[-1]) if rows else None


def measured(value: object) -> float | None:
    """A number of a benchmark; None where there is none, for example of a job that was too short."""
    return float(value) if isinstance(value, int | float) else None
