"""Which stage computes on which GPU of a machine: a lock per device, which the kernel keeps for living processes.

`flock` on a file per device. The launcher takes it for the program that it becomes, and each process of the stage holds
the lock of its device as well: a device is free when the launcher and the process on it have both ended, however they
did. No file has to be removed, and no number of a process can be mistaken for another's.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import Interrupted, UserError
from rlhf.runtime.devices import BY_BUS, ORDER, VISIBLE, Device, described, require_enough
from rlhf.runtime.logging import get_logger
from rlhf.runtime.starters import is_gone, starters

logger = get_logger(__name__)

# One place for all users and projects of the machine, whatever a shell calls its temporary folder.
FOLDER = Path("/tmp/rlhf-devices")
EVERYBODY = "launchers"  # locked while a launcher looks, so that it gets all its devices or none
HELD = "RLHF_DEVICES"  # what a launcher tells its processes: a token, and the names of the locks by LOCAL_RANK
POLL_SECONDS, NEWS_SECONDS = 0.5, 60.0


@dataclass(frozen=True)
class Claim:
    """Devices that are this process's, and those of what it becomes, until it ends.

    Attributes:
        devices: as many as were asked for, in the order of LOCAL_RANK.
        token: by which processes of the stage know that the claim is still theirs.
    """

    devices: tuple[Device, ...]
    token: str

    @property
    def names(self) -> str:
        """The devices as CUDA_VISIBLE_DEVICES lists them."""
        return ",".join(device.name for device in self.devices)

    @property
    def variables(self) -> dict[str, str]:
        """Environment of the stage's processes: the devices that they see, and the claim to them."""
        order = {ORDER: BY_BUS} if all(device.gpu for device in self.devices) else {}
        held = ",".join((self.token, *(_file_name(device) for device in self.devices)))
        return {VISIBLE: self.names, HELD: held, **order}


def claim_devices(count: int, visible: Sequence[Device], environment: Mapping[str, str], holder: str) -> Claim:
    """Take `count` devices that no other stage uses; waits for them, all or none, where too few are free.

    What other programs do on a device is theirs to settle: only stages are seen.

    Args:
        count: devices needed.
        visible: devices to choose from; the first free ones are taken.
        environment: in which they are visible, for messages.
        holder: who takes them, for those who wait.

    Raises:
        UserError: there are not so many.
        Interrupted: what started this process has ended meanwhile.
    """
    require_enough(count, visible, environment)
    parents, said = starters(), -NEWS_SECONDS
    while True:
        found = _try(count, visible, holder)
        if isinstance(found, Claim):
            logger.info("taken: %s", described(found.devices))
            return found
        if any(is_gone(process) for process in parents):
            raise Interrupted("the process that started this one is gone")
        if time.monotonic() - said >= NEWS_SECONDS:
            said = time.monotonic()
            logger.info("waiting for %d free of %s. In use: %s", count, described(visible), "; ".join(found))
        time.sleep(POLL_SECONDS)


@contextmanager
def held_device(environment: Mapping[str, str]) -> Iterator[None]:
    """Keep the lock of this process's device for the block, so that it outlives the launcher with this process.

    Args:
        environment: with what the launcher told; without it (a scheduler, the CPU, by hand) nothing is locked.

    Raises:
        UserError: the launcher has ended, and another stage has taken the device since.
    """
    told = environment.get(HELD)
    if told is None:
        yield
        return
    token, *names = told.split(",")
    path = FOLDER / names[int(environment.get("LOCAL_RANK", "0"))]
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # in a container with files of its own, the launcher outside of it is the only holder
        logger.info("%s is not visible here; the GPU is held by the launcher alone", path)
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # a launcher has it for itself for a moment only
        record = _record(descriptor)
        if record.get("token") != token:
            raise UserError(
                f"{path.name}: the process that started this one has ended, and another stage has taken its GPU: "
                f"{_words(record)}. Run snakemake again"
            )
        yield
    finally:
        os.close(descriptor)


def _try(count: int, visible: Sequence[Device], holder: str) -> Claim | list[str]:
    """Devices for as long as this process lives, also as another program (`exec`), or what is in use of too few."""
    token = secrets.token_hex(8)
    record = {"token": token, "pid": os.getpid(), "holder": holder}
    taken: dict[int, Device] = {}
    busy: list[str] = []
    gate = _open(EVERYBODY)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        for device in visible:
            descriptor = _open(_file_name(device))
            if len(taken) < count and _lock(descriptor):
                taken[descriptor] = device
            else:
                busy.append(f"{device.name} by {_words(_record(descriptor))}")
                os.close(descriptor)
        if len(taken) < count:
            for descriptor in taken:
                os.close(descriptor)
            return busy
        for descriptor in taken:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(record).encode(), 0)
            # Shared from here, with the processes of the stage; who was quicker than that finds the record.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.set_inheritable(descriptor, True)
        # In the order of indices, as DeepSpeed's launcher gives them to its processes.
        return Claim(tuple(sorted(taken.values(), key=lambda device: (len(device.name), device.name))), token)
    finally:
        os.close(gate)


def _open(name: str) -> int:
    """A file that every user may lock and write, in a folder where each may remove only the own ones.

    Raises:
        UserError: it cannot be opened.
    """
    path = FOLDER / name
    before = os.umask(0)
    try:
        with suppress(FileExistsError):
            FOLDER.mkdir(mode=0o1777)
        while True:
            # Without O_CREAT first: Linux refuses it for another user's file in such a folder.
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            with suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; the folder keeps the locks of GPUs: while no stage runs, remove it or "
            "have it removed"
        ) from None
    finally:
        os.umask(before)


def _lock(descriptor: int) -> bool:
    """Lock for this process alone, if nobody has any lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _record(descriptor: int) -> dict[str, Any]:
    """Who took a device last; empty where that cannot be read."""
    try:
        content = json.loads(os.pread(descriptor, 65536, 0))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _words(record: Mapping[str, Any]) -> str:
    return f"{record.get('holder', 'an unknown stage')} (process {record.get('pid', 'unknown')})"


def _file_name(device: Device) -> str:
    return device.identity.replace("/", "_").replace(",", "_")
