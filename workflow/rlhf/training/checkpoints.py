"""Checkpoints inside a stage: complete or ignored, the newest whole one is where the next start goes on.

Folder of one checkpoint, below state/<stage>/<id>/checkpoints/:

    000003-step-000120/
        engine/ metrics/ random/ ...   what each part saved
        rank-0.json                    hashes of the files that this rank vouches for; written last, by every rank

A checkpoint is whole when every rank's file is there, each file of the parts is in exactly one of them, and all hashes
agree. Nothing else marks it, so there is no moment in which a killed process leaves a broken one that looks whole.
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
from rlhf.files import fsync, read_json, sha256_file, write_json
from rlhf.runtime.interruption import Interruption
from rlhf.runtime.lease import StateLease
from rlhf.runtime.logging import get_logger
from rlhf.training.distributed import agreed, all_gather, barrier, rank, together, wait_for_all, world_size
from rlhf.training.random_state import RandomState

logger = get_logger(__name__)

FORMAT = 2
KEPT = 2


class CheckpointPart(Protocol):
    """Something with a state that a checkpoint must hold; both methods are called by all ranks together."""

    def save(self, folder: Path) -> None:
        """Write the state of this rank into a folder that exists and that all ranks share."""

    def load(self, folder: Path) -> None:
        """Take the state that `save` wrote."""


@dataclass
class CheckpointCost:
    """How often this attempt has written a checkpoint, or had no space for one, and the time that training waited."""

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
        parts: Mapping[str, CheckpointPart],
        execution: TrainingExecution,
        interruption: Interruption,
        lease: StateLease,
    ) -> None:
        self._folder, self._identity = folder, {"format": FORMAT, **identity}
        self._random = RandomState()
        self._parts: dict[str, CheckpointPart] = {**parts, "random": self._random}
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
            with together():
                whole = self._is_whole(folder)
            if not all(all_gather(whole)):
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
        stop, due = agreed(self._interruption.reason is not None, self._is_due(now))
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
        if agreed(self._interruption.reason is not None)[0]:
            self._stop()

    def finish(self) -> None:
        """Wait until every process has vouched for the last checkpoint; called by all processes.

        Before that no checkpoint may be removed: the newest is not known to be whole, and others may still read it.

        Raises:
            Exception: what kept a process from it, in that process; `PeerFailed` in the others.
        """
        with together():
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

    def _write(self) -> None:
        start = time.monotonic()
        self.finish()
        with together():
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
        wait_for_all()
        duty = folder, self._share(folder), dict(self._state)
        self._writer = threading.Thread(target=self._vouch, args=duty, name="checkpoint")
        self._writer.start()
        self._saved, self._saved_at = self._state, time.monotonic()
        self._write_seconds = self._saved_at - start
        self.cost.written += 1
        self.cost.seconds += self._write_seconds

    @staticmethod
    def _share(folder: Path) -> list[str]:
        """The files for which this rank vouches; called by all processes, before any of them does.

        Each rank deals out the same list: what any of them sees, because a shared disk may show new files to some late.
        """
        seen = all_gather(_files_of_parts(folder))
        return sorted(set().union(*seen))[rank() :: world_size()]

    def _vouch(self, folder: Path, share: list[str], state: dict[str, Any]) -> None:
        """Flush and hash this rank's share of the files, then say so. Runs beside the training."""
        try:
            for name in share:
                fsync(folder / name)
            hashes = {name: sha256_file(folder / name) for name in share}
            self._bytes = sum((folder / name).stat().st_size for name in share)
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
        """Whether the ranks have vouched for all that is in the checkpoint, and this rank's files are as they were."""
        try:
            records = [read_json(file) for file in sorted(folder.glob("rank-*.json"))]
            processes = records[0]["identity"]["topology"]["processes"] if records else None
            mine = [record for number, record in enumerate(records) if number % world_size() == rank()]
            intact = all(_digest(record) == record["digest"] for record in records)
            vouched_for = sorted(name for record in records for name in record["files"])
            return (
                intact
                and len(records) == processes
                and vouched_for == _files_of_parts(folder)
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
            owner = "specification" if identity["format"] == FORMAT else "version of this workflow"
            aside = self._folder.with_name(f"checkpoints-of-another-{owner.replace(' ', '-')}-{int(time.time())}")
            logger.warning("%s belongs to another %s; moved to %s, starting anew", folder, owner, aside)
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
        """Remove all but the newest of the complete checkpoints, and those that were never completed."""
        names = sorted((path.name for path in self._folder.glob("*-step-*")), reverse=True)
        complete = [name for name in names if len(list((self._folder / name).glob("rank-*.json"))) == world_size()]
        for name in names:
            if name not in complete[:kept]:
                shutil.rmtree(self._folder / name)

    def _has_space(self) -> bool:
        """Whether the disk can take another checkpoint as large as the last; the older of two is given up for it."""
        needed = int(1.1 * sum(all_gather(self._bytes)))
        enough = True
        with together():
            if rank() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                if shutil.disk_usage(self._folder).free < needed:
                    self._prune(1)
                free = shutil.disk_usage(self._folder).free
                enough = free >= needed
                if not enough:
                    sizes = free >> 20, needed >> 20
                    logger.warning("no checkpoint: %s has %d MB, and %d are needed", self._folder, *sizes)
        return bool(all_gather(enough)[0])


def _files_of_parts(folder: Path) -> list[str]:
    """Names of all files that the parts of a checkpoint saved, sorted; what is directly in its folder is not theirs."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/**/*") if file.is_file())


def _digest(record: Mapping[str, Any]) -> str:
    """Hash of what a rank says of a checkpoint, the state of the loop among it."""
    content = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(topology: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in topology.items())
