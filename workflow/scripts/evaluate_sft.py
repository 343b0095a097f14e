"""Measure the fine-tuned model's loss on unseen answers."""

from __future__ import annotations

import argparse

from rlhf.config.specfile import read_spec
from rlhf.config.specification import SftEvaluationSpecification
from rlhf.evaluation.frame import Evaluation
from rlhf.evaluation.supervised import evaluate_sft
from rlhf.runtime.logging import run_script
from rlhf.training.arguments import stage_parser, stage_paths
from rlhf.training.distributed import processes


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    return stage_parser(__doc__, model="model folder of phase 1").parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the evaluation."""
    spec = read_spec(SftEvaluationSpecification, args.spec, args.execution)
    with processes(spec.execution.collective_timeout), Evaluation(spec, stage_paths(args)) as evaluation:
        evaluate_sft(evaluation, args.model)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
