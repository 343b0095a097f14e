"""The GPUs that a stage may use outside of a scheduler: those of the machine that CUDA_VISIBLE_DEVICES leaves.

Nothing here starts CUDA: a launcher that did would hold memory on devices that it only looks at.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf.errors import UserError

VISIBLE, ORDER, ACCELERATOR = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "DS_ACCELERATOR"
BY_BUS = "PCI_BUS_ID"  # the order in which nvidia-smi counts; CUDA's own begins with the fastest
ON_CPU = {VISIBLE: "", ACCELERATOR: "cpu"}
END_OF_LIST = {"-1", "NoDevFiles"}  # CUDA reads no further; the second is Slurm's for "none"
ANSWER_SECONDS = 300  # a driver that starts first, PyTorch from a slow disk
# `nvidia-smi -L`: a GPU, and below it the parts that it is divided into (MIG).
GPU_LINE = re.compile(r"GPU (?P<index>\d+): (?P<model>.+) \(UUID: (?P<uuid>[^)]+)\)")
PART_LINE = re.compile(r"\s+MIG (?P<kind>.+?)\s+Device\s+\d+: \(UUID: (?P<uuid>[^)]+)\)")
COUNT = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class Device:
    """A GPU, or one of the parts that a GPU is divided into.

    Attributes:
        name: what CUDA_VISIBLE_DEVICES calls it: the index of a whole GPU (in the order of the bus, where nvidia-smi
            told it), the UUID of a part.
        identity: what it is called whatever a shell's variables say; the UUID where it is known.
        model: kind of GPU; empty where it is not known.
        part: kind of part; empty for a whole GPU.
        gpu: index of the GPU that it is, or is a part of.
        gpu_uuid: of that GPU.
    """

    name: str
    identity: str
    model: str = ""
    part: str = ""
    gpu: str = ""
    gpu_uuid: str = ""

    def __str__(self) -> str:
        kind = f"{self.model} MIG {self.part}" if self.part else self.model
        details = ", ".join(word for word in (kind, self.identity) if word and word != self.name)
        return f"{self.name} ({details})" if details else self.name


def computes_on_cpu(gpus: int, environment: Mapping[str, str]) -> bool:
    """Whether processes compute on the CPU: `gpus_per_node` is 0, or DeepSpeed's own variable says so.

    By the latter a configuration for several GPUs runs, as so many processes, on a machine without.
    """
    return gpus == 0 or environment.get(ACCELERATOR) == "cpu"


def visible_devices(environment: Mapping[str, str]) -> list[Device]:
    """The devices that processes with this environment may use, in the order of its CUDA_VISIBLE_DEVICES.

    Raises:
        UserError: the variable names a device that the machine does not have, or one that cannot be told; or the
            driver does not answer.
    """
    named = environment.get(VISIBLE)
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:  # in a container of the bare CUDA runtime, or for another maker's devices
        return _counted(environment)
    machine = _listed(_answer([program, "-L"], environment))
    if named is None:
        return machine
    found: dict[str, Device] = {}
    for entry in _entries(named):
        _require_one_order(entry, machine, environment)
        devices = _named(entry, machine)
        if not devices:
            raise UserError(
                f"{VISIBLE}={named}: no device of this machine is {entry}; it has {described(machine)}. Name some of "
                "these by index or UUID (`nvidia-smi -L` lists them), or unset the variable"
            )
        if found.keys() & {device.identity for device in devices}:
            raise UserError(f"{VISIBLE}={named}: names {entry} twice, and CUDA then shows no device; name it once")
        found |= {device.identity: device for device in devices}
    return list(found.values())


def require_enough(gpus: int, devices: Sequence[Device], environment: Mapping[str, str]) -> None:
    """Refuse a stage for which there can never be enough devices here.

    Raises:
        UserError: naming what there is and what to do.
    """
    if gpus > len(devices):
        named = environment.get(VISIBLE)
        place = "this machine" if named is None else f"this machine, of which {VISIBLE}={named} leaves a part,"
        raise UserError(
            f"execution.gpus_per_node: {gpus}, but {place} has {described(devices)}. Lower gpus_per_node (0 computes "
            f"on the CPU; results stay the same), or run where there are more; {ACCELERATOR}=cpu in the environment "
            "puts a process on the CPU in place of each GPU, for a trial"
        )
    parts = [str(device) for device in devices if not device.name.isdigit()]
    if gpus > 1 and parts:
        raise UserError(
            f"execution.gpus_per_node: {gpus}, but {parts[0]} cannot be one of several: CUDA shows a process one part "
            f"of a divided GPU only, and DeepSpeed takes whole ones by index. Set gpus_per_node to 1, or name whole "
            f"GPUs in {VISIBLE}"
        )


def described(devices: Sequence[Device]) -> str:
    """Devices in words: `2 GPUs: 0 (NVIDIA A100-SXM4-40GB, GPU-5d5b...), 1 (...)`."""
    if not devices:
        return "no GPU"
    return f"{len(devices)} GPU{'s' * (len(devices) > 1)}: {', '.join(map(str, devices))}"


def _listed(text: str) -> list[Device]:
    """The devices of `nvidia-smi -L`; a GPU that is divided cannot be used as a whole, and its parts stand for it."""
    devices: list[Device] = []
    for line in text.splitlines():
        if gpu := GPU_LINE.match(line):
            index, model, uuid = gpu["index"], gpu["model"], gpu["uuid"]
            devices.append(Device(index, uuid, model, "", index, uuid))
        elif (part := PART_LINE.match(line)) and devices:
            last = devices[-1] if devices[-1].part else devices.pop()
            devices.append(replace(last, name=part["uuid"], identity=part["uuid"], part=part["kind"]))
    return devices


def _counted(environment: Mapping[str, str]) -> list[Device]:
    """The devices that PyTorch counts; they have no other names than those of CUDA_VISIBLE_DEVICES, or their index."""
    count = int(_answer([sys.executable, "-c", COUNT], environment))
    named = environment.get(VISIBLE)
    names = _entries(named) if named is not None else map(str, range(count))
    return [Device(name, name) for name in list(names)[:count]]


def _answer(command: list[str], environment: Mapping[str, str]) -> str:
    try:
        return subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS
        ).stdout
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout).split()[-60:]) or f"status {error.returncode}"
    except subprocess.TimeoutExpired:
        reason = f"no answer in {ANSWER_SECONDS} s"
    raise UserError(
        f"the GPUs of this machine cannot be listed: {command[0]}: {reason}. Mend the driver, or set "
        "execution.gpus_per_node: 0, which computes on the CPU"
    )


def _entries(named: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, up to what ends the list."""
    words = [word.strip() for word in named.split(",")]
    return list(itertools.takewhile(lambda word: word and word not in END_OF_LIST, words))


def _named(entry: str, machine: Sequence[Device]) -> list[Device]:
    """The device of an index or (beginning of a) UUID; of a GPU that is divided, all parts."""
    if entry.isdigit():
        return [device for device in machine if device.gpu == str(int(entry))]
    whole = [device for device in machine if device.gpu_uuid.startswith(entry)]
    found = whole or [device for device in machine if device.identity.startswith(entry)]
    return found if len({device.gpu_uuid if whole else device.identity for device in found}) == 1 else []


def _require_one_order(entry: str, machine: Sequence[Device], environment: Mapping[str, str]) -> None:
    """Refuse an index that means one GPU to CUDA, and another to nvidia-smi and the person who reads it."""
    if entry.isdigit() and environment.get(ORDER) != BY_BUS and len({device.model for device in machine}) > 1:
        raise UserError(
            f"{VISIBLE}={environment[VISIBLE]}: this machine has {described(machine)}, and CUDA numbers GPUs of "
            f"several kinds in another order. Set {ORDER}={BY_BUS} for the order of nvidia-smi, or name UUIDs"
        )
