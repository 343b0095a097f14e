"""Compare the policy's answers to unseen prompts with those of the fine-tuned model."""

from __future__ import annotations

import argparse

from rlhf.config.specfile import read_spec
from rlhf.config.specification import PpoEvaluationSpecification
from rlhf.evaluation.answers import evaluate_ppo
from rlhf.evaluation.frame import AnswersEvaluation
from rlhf.runtime.logging import run_script
from rlhf.training.arguments import stage_parser, stage_paths
from rlhf.training.distributed import processes


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    return stage_parser(
        __doc__,
        policy="model folder of phase 3",
        sft="model folder of phase 1",
        reward="model folder of phase 2",
        baseline="samples.jsonl of the baseline stage",
    ).parse_args()


def main(args: argparse.Namespace) -> None:
    """Run the evaluation."""
    spec = read_spec(PpoEvaluationSpecification, args.spec, args.execution)
    with processes(spec.execution.collective_timeout), AnswersEvaluation(spec, stage_paths(args)) as evaluation:
        evaluate_ppo(evaluation, args.policy, args.sft, args.reward, args.baseline)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
