"""Say what memory a stage needs before it runs. Exit status 3: it does not fit and is refused."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rlhf.config.schema import MemorySettings
from rlhf.config.specfile import read_job
from rlhf.config.specification import JOBS
from rlhf.planning.files import plan_from_files, refusal
from rlhf.runtime.logging import run_script

DOES_NOT_FIT = 3


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="spec.yaml of the stage")
    parser.add_argument("--execution", type=json.loads, required=True, help="how the stage runs, as JSON")
    parser.add_argument("--memory", type=json.loads, required=True, help="`memory` of the experiment, as JSON")
    parser.add_argument(
        "--model", type=Path, nargs="+", required=True, help="model folders, one for each model that the stage loads"
    )
    parser.add_argument("--upstream", type=Path, nargs="*", default=[], help="spec.yaml of training stages before it")
    parser.add_argument("--output", type=Path, required=True, help="memory_plan.json")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Plan, write, and refuse where that is asked for."""
    stage = read_job(JOBS, args.spec, args.execution)
    memory = MemorySettings.model_validate(args.memory)
    plan = plan_from_files(stage, memory, args.model, args.output, args.upstream)
    if plan["decision"] == "refuse":
        print(f"error: {refusal(plan)}", file=sys.stderr, flush=True)
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
