"""What an out-of-memory message says in numbers."""

from __future__ import annotations

import re

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = r"(?P<number>[\d.]+) (?P<unit>bytes|[KMG]iB)"
_FIELDS = {
    "tried": rf"[Tt]ried to allocate {_SIZE}",
    "total": rf"total capacity of {_SIZE}",
    "free": rf"of which {_SIZE} is free",
    "in_process": rf"this process has {_SIZE} memory in use",
    "allocated": rf"allocated memory {_SIZE} is allocated by PyTorch",
    "reserved_unallocated": rf"{_SIZE} is reserved by PyTorch but unallocated",
}


def parse_out_of_memory(message: str) -> dict[str, int]:
    """Bytes by name from the message of PyTorch's CUDA or CPU allocator; what it does not say is absent.

    Args:
        message: of the exception. It rounds to 1/100 of its unit.

    Returns:
        `tried`: of the allocation that failed. `total`, `free`: of the device. `in_process`: all this process has on
        it. `allocated`: in tensors. `reserved_unallocated`: kept by the allocator without use, so that it was no help:
        fragments. `reserved`: the sum of the two.
    """
    found = {}
    for name, pattern in _FIELDS.items():
        match = re.search(pattern, message)
        if match:
            found[name] = round(float(match["number"]) * UNITS[match["unit"]])
    if {"allocated", "reserved_unallocated"} <= found.keys():
        found["reserved"] = found["allocated"] + found["reserved_unallocated"]
    return found
