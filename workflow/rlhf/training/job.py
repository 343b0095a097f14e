"""A stage at work: where it reads and writes, its lease and its attempts, what asks it to stop, and its memory."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from rlhf.config.section import Section
from rlhf.config.specification import JobSpecification, PlannedJob
from rlhf.data.corpus import Corpus
from rlhf.memory.measure import MemoryMonitor, failure_report
from rlhf.records.memory import MEMORY, ProcessMemory, write_memory
from rlhf.runtime.attempts import Attempt
from rlhf.runtime.failure import OUT_OF_MEMORY, explain
from rlhf.runtime.interruption import Interruption, slurm_seconds_left
from rlhf.runtime.lease import StateLease
from rlhf.runtime.logging import get_logger
from rlhf.runtime.manifest import code_hash, utc_now
from rlhf.runtime.seeds import seed_everything
from rlhf.runtime.starters import starters
from rlhf.training.distributed import barrier, on_cpu, rank, require_device

logger = get_logger(__name__)

SettingsT = TypeVar("SettingsT", bound=Section, covariant=True)
UpstreamT = TypeVar("UpstreamT", bound=Section, covariant=True)
ExecutionT = TypeVar("ExecutionT", bound=PlannedJob, covariant=True)


@dataclass(frozen=True)
class StagePaths:
    """Where a stage reads and writes."""

    tokens: list[Path]
    splits: list[Path]
    output: Path
    state: Path

    def corpus(self, split: str, phase: str, weights: list[float] | None = None) -> Corpus:
        """The rows of one split and phase.

        Args:
            split: `train` or `eval`.
            phase: whose rows: `sft`, `reward` or `ppo`.
            weights: how often an epoch sees the rows of each dataset; None: once.
        """
        return Corpus(self.tokens, self.splits, split, phase, weights)


class Job(Generic[SettingsT, UpstreamT, ExecutionT]):
    """A stage that trains or evaluates.

    Used as a context manager it holds the lease of its state folder, takes signals as requests to stop, and leaves a
    record of the attempt.

    Args:
        spec: the stage's specification.
        paths: where it reads and writes.
    """

    def __init__(self, spec: JobSpecification[SettingsT, UpstreamT, ExecutionT], paths: StagePaths) -> None:
        require_device(spec.execution.gpus_per_node)
        self.spec, self.paths = spec, paths
        self.settings, self.execution = spec.settings, spec.execution
        self.memory = MemoryMonitor(rank(), None if on_cpu() else torch.cuda)
        self.interruption = Interruption(slurm_seconds_left(self.execution.runtime), starters())
        self._lease = StateLease(paths.state)
        self._attempt = Attempt(paths.state, rank())
        self._started = utc_now()
        self._surroundings = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if rank() == 0:
                self._lease.acquire()
                stack.callback(self._lease.release)
                self._failed_memory.unlink(missing_ok=True)
            stack.enter_context(self._attempt)
            barrier()
            stack.enter_context(self.interruption.listening())
            self._surroundings = stack.pop_all()
        if self.spec.seed is not None:
            seed_everything(self.spec.seed)
        logger.info("%s %s, code %s", self.spec.stage, self.spec.id, code_hash()[:15])
        for key, value in self.spec.identity()["settings"].items():
            logger.info("  %s: %s", key, value)
        for step in self.execution.memory_steps:
            logger.info("to fit the memory: %s", step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            process = self.memory.stop()
            if error is not None:
                self._record_memory(error, process)
        finally:
            self._surroundings.__exit__(kind, error, traceback)

    @property
    def _failed_memory(self) -> Path:
        return self.paths.state / MEMORY

    def _record_memory(self, error: BaseException, process: ProcessMemory) -> None:
        """Write what was measured until memory ran out; of several processes, the first that fails does."""
        found = explain(error)
        if found.cause in OUT_OF_MEMORY and not self._failed_memory.exists():
            device, message = "cpu" if on_cpu() else "cuda", str(error) or found.message
            report = failure_report(process, device, found.cause, self.memory.failed_phase, message)
            write_memory(self.paths.state, {**report, "stage": self.spec.stage, "id": self.spec.id})

    @property
    def fingerprint(self) -> str:
        """Hash of what the stage computes and from what, to which its state belongs."""
        identity = self.spec.identity()
        content = {key: identity[key] for key in ("stage", "id", "seed", "settings", "upstream")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
