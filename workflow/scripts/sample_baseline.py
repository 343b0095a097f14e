"""Sample answers of the fine-tuned model to unseen prompts: the reference for the policy, and for best-of-n."""

from __future__ import annotations

import argparse

from rlhf.config.specfile import read_spec
from rlhf.config.specification import BaselineSpecification
from rlhf.evaluation.answers import sample_baseline
from rlhf.evaluation.frame import AnswersEvaluation
from rlhf.runtime.logging import run_script
from rlhf.training.arguments import stage_parser, stage_paths
from rlhf.training.distributed import processes


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    return stage_parser(__doc__, sft="model folder of phase 1", reward="model folder of phase 2").parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the evaluation."""
    spec = read_spec(BaselineSpecification, args.spec, args.execution)
    with processes(spec.execution.collective_timeout), AnswersEvaluation(spec, stage_paths(args)) as evaluation:
        sample_baseline(evaluation, args.sft, args.reward)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
