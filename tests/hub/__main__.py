"""Make the repositories, and serve them."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path

from tests.hub.datasets import DATASETS
from tests.hub.faults import Faults
from tests.hub.making import make
from tests.hub.models import MODELS
from tests.hub.server import Server


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
    arguments = parser.parse_args()
    if arguments.command == "make":
        print("\n".join(make(arguments.root, arguments.names)))
    elif arguments.command == "list":
        print("\n".join([*(f"models/{name}" for name in MODELS), *(f"datasets/{name}" for name in DATASETS)]))
    else:
        server = Server(arguments.root, arguments.port, arguments.log)
        server.faults = Faults(json.loads(arguments.faults.read_text()) if arguments.faults else ())
        print(f"HF_ENDPOINT=http://127.0.0.1:{server.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
