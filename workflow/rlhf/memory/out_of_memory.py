"""What an out-of-memory message says in numbers."""

from __future__ import annotations

import re
from typing import cast

from rlhf.records.memory import AllocatorMessage

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


def parse_out_of_memory(message: str) -> AllocatorMessage:
    """The numbers in the message of PyTorch's CUDA or CPU allocator; what it does not say is absent.

    Args:
        message: of the exception.
    """
    found: dict[str, int] = {}
    for name, pattern in _FIELDS.items():
        match = re.search(pattern, message)
        if match:
            found[name] = round(float(match["number"]) * UNITS[match["unit"]])
    if {"allocated", "reserved_unallocated"} <= found.keys():
        found["reserved"] = found["allocated"] + found["reserved_unallocated"]
    return cast(AllocatorMessage, found)
