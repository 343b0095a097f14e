"""Checkpoints inside a stage: complete or ignored, the newest whole one is where the next start goes on.

Folder of one checkpoint, below state/<stage>/<id>/checkpoints/:

    000003-step-000120/
        engine/ metrics/ random/ ...   what each part saved
        rank-0.json                    hashes of the files that this rank vouches for; written last, by every rank

A checkpoint is whole when every rank's file is there and all hashes agree. Nothing else marks it, so there is no moment
in which a killed process leaves a broken one that looks whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlhf.config.stages import TrainingExecution
from rlhf.errors import Interrupted, UserError
from rlhf.runtime.files import fsync, read_json, sha256_file, write_json
from rlhf.runtime.interruption import Interruption
from rlhf.runtime.lease import StateLease
from rlhf.runtime.logging import get_logger
from rlhf.training.distributed import all_gather, barrier, rank, world_size
from rlhf.training.random_state import RandomState

logger = get_logger(__name__)

FORMAT = 1
KEPT = 2


class Part(Protocol):
    """Something whose state belongs to a checkpoint; all ranks call both together."""

    def save(self, folder: Path) -> None:
        """Write the state of this rank into a folder that exists and that all ranks share."""

    def load(self, folder: Path) -> None:
        """Take the state that `save` wrote."""


@dataclass
class CheckpointCost:
    """What checkpoints cost this attempt, on this rank."""

    written: int = 0
    skipped: int = 0
    seconds: float = 0.0


class Checkpoints:
    """Saves and restores the state of a stage between its steps.

    Args:
        folder: state/<stage>/<id>/checkpoints/.
        identity: what a checkpoint belongs to: `specification`, which another state never matches, and `topology`
            (processes, ZeRO stages), which its files depend on.
        parts: name -> what has a state.
        execution: `checkpoint_steps` and `checkpoint_minutes`.
        interruption: whether the stage should stop.
        lease: of the state folder.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        parts: Mapping[str, Part],
        execution: TrainingExecution,
        interruption: Interruption,
        lease: StateLease,
    ) -> None:
        self._folder, self._identity = folder, {"format": FORMAT, **identity}
        self._random = RandomState()
        self._parts: dict[str, Part] = {**parts, "random": self._random}
        self._every_steps, self._every_minutes = execution.checkpoint_steps, execution.checkpoint_minutes
        self._interruption, self._lease = interruption, lease
        self.cost = CheckpointCost()
        self.restored_step: int | None = None
        self._state: dict[str, Any] = {"step": 0}
        self._saved: dict[str, Any] = {"step": 0}
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved_at = self._boundary_at = time.monotonic()
        self._step_seconds = self._write_seconds = 0.0
        self._bytes = 0

    def restore(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into the parts.

        Returns:
            The loop's state that was given to `boundary`, or None where the stage starts from the beginning.

        Raises:
            UserError: the checkpoint was made with another number of processes or another ZeRO stage.
        """
        for name in self._candidates():
            folder = self._folder / name
            if not all(all_gather(self._is_whole(folder))):
                logger.warning("%s is incomplete or damaged; falling back to the checkpoint before", folder)
                continue
            record = read_json(folder / "rank-0.json")
            if not self._accepts(record["identity"], folder):
                return None
            for part, holder in self._parts.items():
                holder.load(folder / part)
            self._state = self._saved = record["state"]
            self.restored_step = record["state"]["step"]
            logger.info("going on from step %d: %s", self.restored_step, folder)
            return dict(self._state)
        return None

    def boundary(self, state: dict[str, Any]) -> None:
        """Between two steps: save where it is due, and stop where that is asked.

        Args:
            state: of the loop, JSON types only, with the number of steps done as `step`.

        Raises:
            Interrupted: the stage was asked to stop; everything is saved.
        """
        now = time.monotonic()
        self._step_seconds, self._boundary_at = max(self._step_seconds, now - self._boundary_at), now
        self._state = dict(state)
        self._random.capture()
        self._interruption.look_for_starters()
        self._interruption.expect(2 * self._write_seconds + 1.5 * self._step_seconds)
        stop, due = self._agree(self._interruption.reason is not None, self._is_due(now))
        if stop:
            self._stop()
        elif due:
            self._write()

    def interrupt_point(self) -> None:
        """Inside a long step, while nothing that `boundary` saw has changed: stop where that is asked.

        The step is abandoned: what is saved is the state at the last boundary.

        Raises:
            Interrupted: the stage was asked to stop; everything is saved.
        """
        self._interruption.look_for_starters()
        if self._agree(self._interruption.reason is not None)[0]:
            self._stop()

    def finish(self) -> None:
        """Wait for the last checkpoint's hashes; an error while they were made is raised here."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _stop(self) -> None:
        if self._state["step"] and self._state != self._saved:
            self._write()
        self.finish()
        barrier()
        raise Interrupted(
            f"{self._interruption.reason or 'another process was asked to stop'}: stopped after step "
            f"{self._state['step']}, saved step {self._saved['step']}; the same command goes on from there"
        )

    def _is_due(self, now: float) -> bool:
        step = self._state["step"]
        if step == self._saved["step"]:
            return False
        by_steps = self._every_steps is not None and step % self._every_steps == 0
        by_time = self._every_minutes is not None and now - self._saved_at >= 60 * self._every_minutes
        return by_steps or by_time

    @staticmethod
    def _agree(*flags: bool) -> list[bool]:
        """Whether any rank says so: all ranks must take the same way."""
        if world_size() == 1:
            return list(flags)
        return [any(column) for column in zip(*all_gather(flags), strict=True)]

    def _write(self) -> None:
        start = time.monotonic()
        self.finish()
        if rank() == 0:
            self._lease.require()
            self._prune(KEPT)
        if not self._has_space():
            self.cost.skipped += 1
            self._saved_at = start
            return
        folder = self._folder / f"{self._next_number():06d}-step-{self._state['step']:09d}"
        if rank() == 0:
            for part in self._parts:
                (folder / part).mkdir(parents=True)
        barrier()
        for part, holder in self._parts.items():
            holder.save(folder / part)
        barrier()
        self._writer = threading.Thread(target=self._vouch, args=(folder, dict(self._state)), name="checkpoint")
        self._writer.start()
        self._saved, self._saved_at = self._state, time.monotonic()
        self._write_seconds = self._saved_at - start
        self.cost.written += 1
        self.cost.seconds += self._write_seconds

    def _vouch(self, folder: Path, state: dict[str, Any]) -> None:
        """Flush and hash this rank's share of the files, then say so. Runs beside the training."""
        try:
            files = sorted(file for file in folder.rglob("*") if file.is_file())[rank() :: world_size()]
            for file in files:
                fsync(file)
            hashes = {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}
            self._bytes = sum(file.stat().st_size for file in files)
            record = {"schema_version": 1, "identity": self._identity, "state": state, "files": hashes}
            write_json(folder / f"rank-{rank()}.json", record | {"digest": _digest(record)})
            fsync(folder)
        except BaseException as error:  # raised again by the training thread
            self._failure = error

    def _candidates(self) -> list[str]:
        """Names of all checkpoints, newest first, as rank 0 sees them."""
        found = sorted((path.name for path in self._folder.glob("*-step-*")), reverse=True)
        names: list[str] = all_gather(found)[0]
        return names

    def _next_number(self) -> int:
        newest = self._candidates()[:1]
        return int(newest[0].split("-")[0]) + 1 if newest else 1

    def _is_whole(self, folder: Path) -> bool:
        """Whether all ranks have vouched for the checkpoint, and this rank's files are what it vouched for."""
        try:
            records = [read_json(file) for file in sorted(folder.glob("rank-*.json"))]
            processes = records[0]["identity"]["topology"]["processes"] if records else None
            mine = [record for number, record in enumerate(records) if number % world_size() == rank()]
            intact = all(_digest(record) == record["digest"] for record in records)
            return (
                intact
                and len(records) == processes
                and all(
                    (folder / name).is_file() and sha256_file(folder / name) == digest
                    for record in mine
                    for name, digest in record["files"].items()
                )
            )
        except (UserError, KeyError, TypeError, OSError):
            return False

    def _accepts(self, identity: dict[str, Any], folder: Path) -> bool:
        """Whether a whole checkpoint belongs to this stage as it runs now."""
        if {**identity, "topology": None} != {**self._identity, "topology": None}:
            aside = self._folder.with_name(f"checkpoints-of-another-specification-{int(time.time())}")
            logger.warning("%s belongs to another specification; moved to %s, starting anew", folder, aside)
            if rank() == 0:
                self._folder.rename(aside)
            barrier()
            return False
        if identity["topology"] != self._identity["topology"]:
            raise UserError(
                f"{folder} was made with {_shown(identity['topology'])}, and now it is "
                f"{_shown(self._identity['topology'])}: run the stage as before to go on, or remove {self._folder} to "
                "start anew"
            )
        return True

    def _prune(self, kept: int) -> None:
        """Remove all but the newest complete checkpoints, and whatever was never completed."""
        names = sorted((path.name for path in self._folder.glob("*-step-*")), reverse=True)
        complete = [name for name in names if len(list((self._folder / name).glob("rank-*.json"))) == world_size()]
        for name in names:
            if name not in complete[:kept]:
                shutil.rmtree(self._folder / name)

    def _has_space(self) -> bool:
        """Whether the disk can take another checkpoint as large as the last; the older of two is given up for it."""
        needed = int(1.1 * sum(all_gather(self._bytes)))
        enough = True
        if rank() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._folder).free < needed:
                self._prune(1)
            free = shutil.disk_usage(self._folder).free
            enough = free >= needed
            if not enough:
                logger.warning("no checkpoint: %s has %d MB, and %d are needed", self._folder, free >> 20, needed >> 20)
        return bool(all_gather(enough)[0])


def _digest(record: Mapping[str, Any]) -> str:
    """Hash of what a rank says of a checkpoint, the state of the loop among it."""
    content = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(topology: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in topology.items())
