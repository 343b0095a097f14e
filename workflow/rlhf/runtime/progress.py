"""Metrics and progress of a running stage: a file that readers can follow, and a line in the log."""

from __future__ import annotations

import math
import os
import resource
import shutil
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhf.errors import Interrupted
from rlhf.files import read_json, write_json, write_text
from rlhf.records.metrics import METRICS, MetricsLine, Phase, append_metrics, read_metrics
from rlhf.records.progress import Status, write_progress
from rlhf.runtime.devices import VISIBLE
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

LOG_INTERVAL_SECONDS = 10.0
PROGRESS_INTERVAL_SECONDS = 1.0


class StageMetrics:
    """Writes `metrics.jsonl` and `progress.json` in the state folder of a stage, on rank 0 only.

    Args:
        folder: state/<stage>/<id>/, outside everything Snakemake removes when a job fails.
        stage: stage kind.
        identifier: stage ID.
        total_steps: steps of the whole stage, for the progress bar and the ETA.
        enabled: False on ranks other than 0, which write nothing.

    Used as a context manager: the status ends as `done`, as `interrupted` where the stage can go on, or as `failed`.
    Part of a checkpoint, so that the metrics of a stage that was interrupted are one unbroken curve.
    """

    def __init__(self, folder: Path, stage: str, identifier: str, total_steps: int, enabled: bool = True) -> None:
        self.metrics_file = folder / METRICS
        self._folder = folder
        self._stage, self._identifier, self._total_steps = stage, identifier, total_steps
        self._enabled = enabled
        self._start = time.monotonic()
        self._last_logged = self._last_written = -math.inf
        self._last: MetricsLine | None = None
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self.metrics_file.write_text("")
            self._write_progress("running")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._enabled:
            ended: Status = "interrupted" if isinstance(error, Interrupted) else "failed"
            self._write_progress(ended if error else "done")

    @property
    def elapsed(self) -> float:
        """Seconds of this stage so far, those of earlier attempts up to their last checkpoint included."""
        return time.monotonic() - self._start

    def save(self, folder: Path) -> None:
        """Write the metrics so far into a checkpoint."""
        if self._enabled:
            shutil.copyfile(self.metrics_file, folder / METRICS)
            write_json(folder / "elapsed.json", self.elapsed)

    def load(self, folder: Path) -> None:
        """Take the metrics of a checkpoint as the ones so far, and its time as the time so far."""
        self._start = time.monotonic() - read_json(folder / "elapsed.json")
        if self._enabled:
            lines = read_metrics(folder / METRICS)
            self._last = lines[-1] if lines else None
            write_text(self.metrics_file, (folder / METRICS).read_text(encoding="utf-8"))
            self._write_progress("running")

    def require_complete(self, steps: int) -> None:
        """Make sure that each step has exactly one line.

        Raises:
            RuntimeError: steps are missing or repeated; the stage must not pass for done.
        """
        if not self._enabled:
            return
        found = [line.step for line in read_metrics(self.metrics_file) if line.phase == "train"]
        if found != list(range(1, steps + 1)):
            raise RuntimeError(
                f"{self._stage} {self._identifier}: {len(found)} training steps are recorded, {steps} were to be done; "
                "the stage is not complete"
            )

    def record(self, step: int, phase: Phase, **metrics: float) -> None:
        """Append one line of metrics.

        Args:
            step: steps finished, 1-based for training; 0 before the first.
            phase: `train` or `eval`.
            metrics: finite numbers. One that is not finite stops the stage, because a model trained on is lost.

        Raises:
            FloatingPointError: a metric is NaN or infinite.
        """
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"{self._stage} {self._identifier}: {', '.join(broken)} is not finite at step {step}; "
                "try a smaller learning rate, or bf16 or fp32 in place of fp16"
            )
        if not self._enabled:
            return
        line = self._last = MetricsLine(step, phase, round(self.elapsed, 3), metrics)
        append_metrics(self.metrics_file, line)
        now = time.monotonic()
        if now - self._last_written >= PROGRESS_INTERVAL_SECONDS:
            self._last_written = now
            self._write_progress("running")
        if phase == "eval" or step >= self._total_steps or now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            logger.info(self._text(line))

    def _eta(self) -> float | None:
        last = self._last
        if last is None or not last.step:
            return None
        return last.time / last.step * max(0, self._total_steps - last.step)

    def _text(self, line: MetricsLine) -> str:
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in line.values.items())
        eta = self._eta()
        left = f"  ETA {format_seconds(eta)}" if eta is not None and line.phase == "train" else ""
        share = line.step / max(1, self._total_steps)
        return f"{line.phase:5} step {line.step}/{self._total_steps} ({share:.0%}){left}  {numbers}"

    def _write_progress(self, status: Status) -> None:
        last = self._last
        write_progress(
            self._folder,
            {
                "schema_version": 1,
                "stage": self._stage,
                "id": self._identifier,
                "slurm_job_id": os.environ.get("SLURM_JOB_ID", ""),
                "gpus": os.environ.get(VISIBLE, ""),
                "step": last.step if last else 0,
                "total_steps": self._total_steps,
                "phase": last.phase if last else None,
                "speed": last.values.get("tokens_per_second") if last else None,
                "eta_seconds": self._eta(),
                "updated": time.time(),
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "peak_rss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,  # kilobytes on Linux
                "status": status,
                "metrics": last.row() if last else {},
            },
        )


def format_seconds(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
