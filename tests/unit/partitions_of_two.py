"""One of two processes that load a model in partitions; writes what it held: FOLDER OUTPUT."""

import gc
import sys
from pathlib import Path
from typing import Any

import torch

from rlhf.files import write_json
from rlhf.memory.tracker import Tracker
from rlhf.models.loading import load_policy, load_reward_backbone
from rlhf.training.distributed import processes, rank
from rlhf.training.weights import plain_weights

ZERO3 = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


def held(expected: Any, load: Any) -> dict[str, Any]:
    """Bytes in partitions and at the peaks of loading and of gathering for the first process."""
    loading, saving = Tracker(), Tracker()
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
        "load_peak": loading.peaks()[""].total,
        "save_peak": saving.peaks()[""].total,
        "as_saved": all(torch.equal(weights[name], value) for name, value in expected.items()) if weights else None,
    }


def main(folder: Path, output: Path) -> None:
    """Load a policy and a reward model."""
    gc.set_threshold(50)  # tensors in reference cycles count until they are collected, which must not be left to chance
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
