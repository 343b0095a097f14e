"""Train a reward model on preference pairs (phase 2)."""

from __future__ import annotations

import argparse

from rlhf.config.specfile import read_spec
from rlhf.config.specification import RewardSpecification
from rlhf.runtime.logging import run_script
from rlhf.training.arguments import stage_parser, stage_paths
from rlhf.training.distributed import processes
from rlhf.training.reward import train_reward
from rlhf.training.stage import TrainingStage


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    return stage_parser(__doc__, model="Hugging Face folder of a language model to start from").parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the stage."""
    spec = read_spec(RewardSpecification, args.spec, args.execution)
    with processes(spec.execution.collective_timeout), TrainingStage(spec, stage_paths(args)) as stage:
        if not stage.was_finished():
            train_reward(stage, args.model)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
