"""Check the metrics of a PPO run against the table of inequalities (rlhf.reporting.inequalities)."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.records.checks import write_checks
from rlhf.records.manifest import read_manifest
from rlhf.records.metrics import read_metrics
from rlhf.reporting.checks import check_metrics, in_words, report, require_hard
from rlhf.runtime.logging import get_logger, run_script

logger = get_logger("rlhf.check_ppo")


def parse_args() -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, help="manifest.json of the PPO stage")
    for kind in ("ppo", "sft", "reward"):
        parser.add_argument(f"--{kind}", type=Path, required=True, help=f"metrics.jsonl of the {kind} stage")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Fail where a hard inequality is violated; warn where a soft one is."""
    manifest = read_manifest(args.manifest.parent)
    metrics = {kind: read_metrics(getattr(args, kind)) for kind in ("ppo", "sft", "reward")}
    checks = check_metrics(manifest, metrics)
    require_hard(checks, manifest["id"])
    for check in checks:
        if not check.holds:
            logger.warning(in_words(check))
    write_checks(args.output, report(checks, manifest["id"]))
    logger.info("%s: %d of %d inequalities hold", manifest["id"], sum(check.holds for check in checks), len(checks))


if __name__ == "__main__":
    run_script(lambda: main(parse_args()))
