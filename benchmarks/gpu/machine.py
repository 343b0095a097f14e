"""The card and its software, and two rates that no program can exceed."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "datasets", "accelerate", "numpy", "pyarrow")
REPETITIONS, WARM_UP = 10, 3
SIDE, COPIED_BYTES = 8192, 2**31


def facts() -> dict[str, Any]:
    """Versions, and what the driver says of the card; `card` is None without CUDA."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "card": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
        }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def ceilings() -> dict[str, float]:
    """Measured rates of a large bf16 matrix product (operations per second) and of a copy (bytes per second)."""
    first, second = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * SIDE**3 / _seconds(lambda: first @ second)
    source = torch.randn(COPIED_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return {"matmul": product, "copy": 2 * COPIED_BYTES / _seconds(lambda: target.copy_(source))}


def _seconds(work: Callable[[], Any]) -> float:
    """Median time of some device work."""
    times = []
    for number in range(WARM_UP + REPETITIONS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        if number >= WARM_UP:
            times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)
