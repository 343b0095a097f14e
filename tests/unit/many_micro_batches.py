"""Steps of many micro-batches, and what they must give; as a program, one of several processes: OUTPUT CASES."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.config.stages import SftSettings
from rlhf.files import write_json
from rlhf.models.loading import DTYPES
from rlhf.training.distributed import processes, rank, world_size
from rlhf.training.engine import EngineSettings, LazyLoss, Trainer

MICRO_BATCHES, STEPS, SCALE = 128, 2, 2**8
OPTIMIZATION = SftSettings(learning_rate=1e-3, lr_scheduler_type="constant", adam_epsilon=1e-3, weight_decay=0.0)


def model(dtype: str) -> nn.Module:
    """A network whose micro-batches have gradients of one direction, so that late ones are small beside the sum."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)).to(DTYPES[dtype])


def losses(network: nn.Module, dtype: str, step: int, process: int, number: int) -> list[LazyLoss]:
    """Squared distances from a value far off, each divided by the count of the whole step of `number` processes."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(number, MICRO_BATCHES, 4, 16, generator=generator) + 0.5

    def loss(rows: Tensor) -> Tensor:
        distance: Tensor = network(rows) - 3
        return distance.float().pow(2).sum() / (4 * number * MICRO_BATCHES)

    return [partial(loss, rows) for rows in inputs[process].to(DTYPES[dtype])]


def expected(dtype: str, number: int) -> tuple[list[float], dict[str, Tensor]]:
    """Gradient norms and last weights of AdamW in fp32, on gradients of the given precision, summed in float64."""
    network = model(dtype)
    scale = SCALE * number if dtype == "fp16" else number  # what a loss is multiplied with, against underflow
    master = copy.deepcopy(network).float()
    optimizer = torch.optim.AdamW(master.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    norms = []
    for step in range(STEPS):
        sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in network.parameters()]
        for process in range(number):
            for loss in losses(network, dtype, step, process, number):
                gradients = torch.autograd.grad(loss() * scale, network.parameters())
                for total, gradient in zip(sums, gradients, strict=True):
                    total += gradient.double() / scale
        norms.append(float(torch.cat([total.flatten() for total in sums]).norm()))
        for weight, total in zip(master.parameters(), sums, strict=True):
            weight.grad = total.float()
        nn.utils.clip_grad_norm_(master.parameters(), OPTIMIZATION.gradient_clipping)
        optimizer.step()
        with torch.no_grad():
            for weight, exact in zip(network.parameters(), master.parameters(), strict=True):
                weight.copy_(exact)
    return norms, network.state_dict()


def trained(dtype: str, zero_stage: int, offload: bool, overrides: dict[str, Any]) -> tuple[list[Any], nn.Module]:
    """Gradient norms of the engine, and the model after the last step."""
    network = model(dtype)
    scaling = {"fp16": {"enabled": True, "initial_scale_power": 8}} if dtype == "fp16" else {}
    settings = EngineSettings(zero_stage, dtype, 4, offload, False, scaling | overrides)
    trainer = Trainer(network, OPTIMIZATION, settings, STEPS)
    norms = [trainer.step(losses(trainer.engine, dtype, step, rank(), world_size())) for step in range(STEPS)]
    return norms, network


def main(output: Path, cases: list[tuple[str, int, bool, dict[str, Any]]]) -> None:
    """Train in each way; the first process writes the norms of all."""
    with processes():
        norms = [trained(*case)[0] for case in cases]
        if rank() == 0:
            write_json(output, norms)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
