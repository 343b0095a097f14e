"""Make the repositories, serve them, or run a command that finds them in the place of the hub."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hub.datasets import DATASETS
from tests.hub.faults import Faults
from tests.hub.making import make
from tests.hub.models import MODELS
from tests.hub.server import TOKENS, Hub, Server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="write tiny repositories")
    one.add_argument("root", type=Path)
    one.add_argument("names", nargs="*")
    one = commands.add_parser("serve", help="serve them until interrupted")
    one.add_argument("root", type=Path)
    one.add_argument("--port", type=int, default=0, help="default: any that is free")
    one.add_argument("--faults", type=Path, help="JSON list of faults")
    one.add_argument("--log", type=Path, help="a JSON line for each request is appended")
    commands.add_parser("list", help="what can be made")
    one = commands.add_parser("run", help="run a command with a hub and a cache of its own, gone when it ends")
    one.add_argument("command_line", nargs="+", metavar="COMMAND")
    arguments = parser.parse_args()
    if arguments.command == "make":
        print("\n".join(make(arguments.root, arguments.names)))
    elif arguments.command == "list":
        print("\n".join([*(f"models/{name}" for name in MODELS), *(f"datasets/{name}" for name in DATASETS)]))
    elif arguments.command == "run":
        sys.exit(run(arguments.command_line))
    else:
        server = Server(arguments.root, arguments.port, arguments.log)
        server.faults = Faults(json.loads(arguments.faults.read_text()) if arguments.faults else ())
        print(f"HF_ENDPOINT=http://127.0.0.1:{server.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def run(command: list[str]) -> int:
    """Run a command that finds all repositories, and passes the gates of those that have some; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "hub")
        with Hub(Path(folder) / "hub") as hub:
            own = {"HF_ENDPOINT": hub.url, "HF_HOME": f"{folder}/home", "HF_TOKEN": TOKENS["member"]}
            return subprocess.run(command, env=os.environ | own, check=False).returncode


if __name__ == "__main__":
    main()
