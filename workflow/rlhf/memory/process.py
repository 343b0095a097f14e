"""What the kernel counts of this process and its control group, in bytes; None where it does not tell."""

from __future__ import annotations

import re
from pathlib import Path

PROC, CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")


def proportional_set() -> int | None:
    """Resident memory, pages that processes share divided among them. The kernel walks all pages for it."""
    return _kilobytes(PROC / "smaps_rollup", "Pss")


def high_water_mark() -> int | None:
    """Largest resident memory since the process began, however short it was."""
    return _kilobytes(PROC / "status", "VmHWM")


def cgroup_peak() -> int | None:
    """Largest memory of the control group (under a scheduler, the job), its page cache included."""
    text = _read(PROC / "cgroup") or ""
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = CGROUPS, "memory.peak"
        elif "memory" in controllers.split(","):
            top, name = CGROUPS / "memory", "memory.max_usage_in_bytes"
        else:
            continue
        # In a container the group may be mounted as the root.
        for folder in (top / path.lstrip("/"), top):
            found = _read(folder / name)
            if found is not None:
                return int(found)
    return None


def _kilobytes(path: Path, field: str) -> int | None:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _read(path) or "", re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # another system, an older kernel, or not permitted
        return None
