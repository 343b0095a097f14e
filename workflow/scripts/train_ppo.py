"""Optimise the fine-tuned policy against the reward model with PPO (phase 3)."""

from __future__ import annotations

import argparse

from rlhf.config.specfile import read_spec
from rlhf.config.specification import PpoSpecification
from rlhf.functions import load_judge
from rlhf.ppo.loop import train_ppo
from rlhf.runtime.logging import run_script
from rlhf.training.arguments import stage_parser, stage_paths
from rlhf.training.distributed import processes
from rlhf.training.stage import TrainingStage


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    return stage_parser(__doc__, sft="model folder of phase 1", reward="model folder of phase 2").parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the stage."""
    spec = read_spec(PpoSpecification, args.spec, args.execution)
    with processes(spec.execution.collective_timeout), TrainingStage(spec, stage_paths(args)) as stage:
        if not stage.was_finished():
            train_ppo(stage, args.sft, args.reward, load_judge(stage.settings.gold_reward))


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
