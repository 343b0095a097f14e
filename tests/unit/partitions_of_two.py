"""One of two processes that load a model in partitions; writes what it held: FOLDER OUTPUT."""

import gc
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rlhf.files import write_json
from rlhf.memory.tracker import Tracker
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.training.distributed import processes, rank
from rlhf.training.weights import plain_weights

ZERO3 = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
# Of the whole model, what a process that does not write may hold while it loads, and while all gather.
LOADING, SAVING = 0.85, 0.5
SECONDS = 30.0  # after which what is still held is taken to be held on purpose


class Held(Tracker):
    """The most bytes that are held at one time, beyond what is on its way out.

    Gloo's threads let go of a tensor some time after they have sent it, and reference cycles are there until they are
    collected. Both are waited for where a limit is passed: how busy the machine is must not be part of the number.

    Args:
        limit: in bytes.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit, self.most = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        deadline = time.monotonic() + SECONDS
        while self.most <= self._limit < self.live() and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        self.most = max(self.most, self.live())
        return out


def held(expected: Any, load: Any) -> dict[str, Any]:
    """Bytes in partitions, and the most while loading and while gathering for the first process."""
    size = sum({value.data_ptr(): value.nbytes for value in expected.values()}.values())
    first = rank() == 0  # it has the file's pages mapped besides, and gathers the model
    loading, saving = (Held(math.inf if first else share * size) for share in (LOADING, SAVING))
    with loading:
        model = load()
    with saving:
        weights = plain_weights(model, keep=rank() == 0)
    parameters = list(model.parameters())
    return {
        "whole": sum(parameter.numel() for parameter in parameters),
        "parameters": sum(parameter.ds_numel for parameter in parameters),
        "share": sum(parameter.ds_tensor.nbytes for parameter in parameters),
        "largest": max(parameter.ds_numel for parameter in parameters) * 4,
        "size": size,
        "most_loading": loading.most,
        "most_saving": saving.most,
        "as_saved": all(torch.equal(weights[name], value) for name, value in expected.items()) if weights else None,
    }


def main(folder: Path, output: Path) -> None:
    """Load a policy and a reward model."""
    with processes():
        seen = {
            "policy": held(load_policy(folder, "fp32").state_dict(), lambda: load_policy(folder, "fp32", zero3=ZERO3)),
            "reward": held(
                load_reward_backbone(folder, "fp32", 5).state_dict(),
                lambda: load_reward_backbone(folder, "fp32", 5, zero3=ZERO3),
            ),
        }
        write_json(output / f"rank-{rank()}.json", seen)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
