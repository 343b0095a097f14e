"""GPUs: their capacity, and what of it goes to other things than tensors."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.errors import UserError

GIB, MIB = 2**30, 2**20
USABLE = 0.97  # drivers keep the rest
MARGIN = 1.10  # of the upper bound over what is expected
NCCL_COMMUNICATOR = 700 * MIB
UNKNOWN_CONTEXT = 512 * MIB


@dataclass(frozen=True)
class Device:
    """A GPU.

    Args:
        name: as it is sold.
        capacity: bytes.
        context: bytes of the CUDA context and its kernels.
    """

    name: str
    capacity: int
    context: int = UNKNOWN_CONTEXT


# Capacity in GiB as the driver reports it, and the context in MiB where somebody measured it.
TABLE = {
    "v100-16g": (16.0, 512),
    "v100-32g": (32.0, 512),
    "t4": (15.0, 256),
    "l4": (22.5, 226),
    "a10g": (22.5, 256),
    "rtx-3090": (24.0, 400),
    "rtx-4090": (24.0, 426),
    "a6000": (48.0, 426),
    "rtx-6000-ada": (48.0, 426),
    "l40s": (45.0, 426),
    "a100-40g": (40.0, 501),
    "a100-80g": (80.0, 501),
    "h100-80g": (80.0, 520),
    "h800-80g": (80.0, 520),
    "h100-96g": (95.0, 520),
    "h200": (141.0, 520),
    "b200": (179.0, 520),
}


def find_device(name: str | None, memory_gib: float | None = None) -> Device:
    """A device of the table, or one of a given size.

    Args:
        name: key of the table, in any case; None where only the size is known.
        memory_gib: capacity; None takes the table's.

    Raises:
        UserError: the name is unknown and no size is given.
    """
    key = (name or "").lower().replace("_", "-").replace(" ", "-")
    if key in TABLE:
        gib, context = TABLE[key]
        return Device(key, int((memory_gib or gib) * GIB), context * MIB)
    if memory_gib is None:
        raise UserError(f"gpu: {name!r} is unknown; give gpu_memory_gib, or one of {', '.join(TABLE)}")
    return Device(name or f"{memory_gib:g} GiB", int(memory_gib * GIB))


@dataclass(frozen=True)
class DeviceMemory:
    """The three numbers of a prediction, in bytes.

    Args:
        expected_allocated: largest sum of tensors.
        expected_device: what the driver will count: tensors, what the allocator holds beyond them, and the context.
        upper_device: what the driver will not exceed.
    """

    expected_allocated: int
    expected_device: int
    upper_device: int


def slack(zero_stages: list[int], generates: bool) -> float:
    """Share by which the allocator holds more than the tensors need.

    Measured: 2 to 9 % at fixed shapes, 23 % under ZeRO-3, and about 25 % where generation takes turns with training.
    Generation alone is taken to need as much: its cache grows by a token at a time.
    """
    if generates:
        return 0.25
    return 0.20 if 3 in zero_stages else 0.10 if max(zero_stages) else 0.05


def device_memory(
    allocated: int, share: float, context: int, communicators: int = 0, repeated: int = 0
) -> DeviceMemory:
    """What the driver will count of a device, from the tensors of the process that uses it.

    Args:
        allocated: largest sum of live tensors.
        share: slack of the allocator.
        context: of the device.
        communicators: of NCCL.
        repeated: bytes in large blocks whose size follows the batch: where lengths vary, freed ones of another size may
            stay cached beside those in use. Counted in the upper bound.
    """
    expected = int(allocated * (1 + share)) + context + communicators * NCCL_COMMUNICATOR
    return DeviceMemory(allocated, expected, int(MARGIN * (expected + repeated)))
