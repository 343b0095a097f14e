"""Fine-tune a language model on prompts and chosen answers (phase 1)."""

from __future__ import annotations

import argparse

from rlhf.config.specfile import read_spec
from rlhf.config.specification import SftSpecification
from rlhf.runtime.logging import run_script
from rlhf.training.arguments import stage_parser, stage_paths
from rlhf.training.distributed import processes
from rlhf.training.sft import train_sft
from rlhf.training.stage import TrainingStage


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    return stage_parser(__doc__, model="Hugging Face folder to start from").parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the stage."""
    spec = read_spec(SftSpecification, args.spec, args.execution)
    with processes(spec.execution.collective_timeout), TrainingStage(spec, stage_paths(args)) as stage:
        if not stage.was_finished():
            train_sft(stage, args.model)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
