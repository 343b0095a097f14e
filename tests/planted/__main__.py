"""Plants the faults of faults.yaml, one at a time, and expects the tests named with each to turn red.

python -m tests.planted [--quick] [--only PATTERN]        (or `make planted`)
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from tests.planted.planting import Outcome, read_faults, try_faults

SHOWN_LINES = 60  # of a run that is not as expected


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pattern of 'file: name'")
    parser.add_argument("--quick", action="store_true", help="those that every test run plants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults at a time")
    return parser.parse_args()


def told(outcome: Outcome) -> str:
    """One line, or the end of the output where it is not as expected."""
    fault = outcome.fault
    what = "nothing planted" if fault is None else f"{fault.file}: {fault.name}"
    if outcome.as_expected:
        failed = re.search(r"^(?:FAILED|ERROR) \S*?/(test_\S+)", outcome.output, re.MULTILINE)
        return f"{what}: {'green' if fault is None else 'red'}{f' by {failed[1]}' if failed else ''}"
    if outcome.code == 0 and fault is not None:
        return f"NOT SEEN {what}: {', '.join(fault.tests)} stayed green"
    end = "\n".join(outcome.output.splitlines()[-SHOWN_LINES:])
    return f"BROKEN {what} (pytest ended with {outcome.code})\n{end}"


def main(args: argparse.Namespace) -> int:
    faults = [
        fault
        for fault in read_faults()
        if re.search(args.only, f"{fault.file}: {fault.name}") and (fault.quick or not args.quick)
    ]
    wrong = 0
    for outcome in try_faults(faults, args.jobs):
        print(told(outcome), flush=True)
        wrong += not outcome.as_expected
    print(f"{len(faults)} faults, {wrong} not as expected")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
