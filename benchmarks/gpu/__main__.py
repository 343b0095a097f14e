"""Right results, memory and speed of the stages on this machine's GPU, in a few minutes; or in miniature on the CPU.

    python -m benchmarks.gpu --minutes 8          (from the repository)
    python -m benchmarks.gpu --only correctness
    python -m benchmarks.gpu --tiny --output /tmp/tiny

Writes results-DATE-CARD.json and .md, anew after each part. A part that fails is reported with its traceback, and the
others go on. Needs no network and no Snakemake; models and data are made on the spot. Exit status: 0 all parts worked,
or cannot work on this machine; 1 some did not.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks.gpu.measurement import Measurement, NoDevice

HERE = Path(__file__).parent
GRACE = 20  # seconds after the end in which a part may end by itself


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything; default: 8")
    parser.add_argument("--tiny", action="store_true", help="on the CPU and small: shows that the program works")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts whose names begin so")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the results; default: beside the program")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, which is removed")
    parser.add_argument("--commit", help="of the code, where this is no git checkout")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> bool:
    """Run all parts in a folder; returns whether all of them worked."""
    args.output.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    measurement = Measurement("tiny" if args.tiny else "full", 60 * args.minutes, args.only, args.output, folder)
    measurement.name_commit(args.commit)
    try:
        return measurement.run()
    finally:
        measurement.close()


def stop(_number: int, _frame: FrameType | None) -> None:
    """A signal ends the program as an exception does: processes are ended and results written."""
    raise KeyboardInterrupt


def main() -> None:
    """Command line."""
    args = parse_args()
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stop)
    signal.alarm(int(60 * args.minutes) + GRACE)
    try:
        if args.folder is not None:
            sys.exit(0 if measure(args, args.folder) else 1)
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            sys.exit(0 if measure(args, Path(folder)) else 1)
    except NoDevice as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
