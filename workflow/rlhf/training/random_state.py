"""The states of all global random generators of a process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.files import read_json, write_json
from rlhf.training.distributed import on_cpu, rank


class RandomState:
    """Where the random generators of Python, NumPy and PyTorch were in this process at the last `capture`."""

    def __init__(self) -> None:
        self._captured: dict[str, Any] = {}
        self.capture()

    def capture(self) -> None:
        """Take the present states, which `save` may write later, when they have moved on."""
        version, numbers, gauss = random.getstate()
        name, keys, *rest = np.random.get_state()
        self._captured = {
            "python": [version, list(numbers), gauss],
            "numpy": [name, np.asarray(keys).tolist(), *rest],
            "torch": torch.get_rng_state().tolist(),
        }
        if not on_cpu():
            self._captured["device"] = torch.cuda.get_rng_state().tolist()

    def save(self, folder: Path) -> None:
        """Write the captured states of this rank."""
        write_json(folder / f"rank-{rank()}.json", self._captured)

    def load(self, folder: Path) -> None:
        """Set the generators of this rank to the states that `save` wrote."""
        saved = read_json(folder / f"rank-{rank()}.json")
        version, numbers, gauss = saved["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = saved["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(torch.tensor(saved["torch"], dtype=torch.uint8))
        if "device" in saved:
            torch.cuda.set_rng_state(torch.tensor(saved["device"], dtype=torch.uint8))
        self._captured = saved
