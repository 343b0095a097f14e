"""A `python` for the rules that has imported what takes long: each script runs in a child of one warm process.

Of the seconds of a job on tiny models most are imports. The program `python` in front of PATH hands its arguments,
environment, working directory and streams to the warm process, which forks, and ends with the status of the child.
What is no script, and all else in the rules, is as ever.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 8  # bytes that say how many follow


@contextmanager
def warm_python(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start the warm process; yields the folder to be put in front of PATH, which has its `python`.

    Args:
        folder: to be made; short, as the name of a socket has at most 107 bytes.
        environment: of the warm process while it imports; a job has its own.
    """
    folder.mkdir(parents=True)
    program, listening = folder / "python", folder / "socket"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {Path(__file__).resolve()} {listening} "$@"\n')
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", "--serve", str(listening)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'workflow'}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", "the warm process ended while it imported"
        yield str(folder)
    finally:
        server.terminate()
        server.wait()


def ask(listening: str, words: list[str]) -> int:
    """Let the warm process run a script with this one's surroundings; returns its exit status."""
    request = json.dumps({"words": words, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(listening)
        socket.send_fds(connection, [len(request).to_bytes(LENGTH)], [0, 1, 2])
        connection.sendall(request)
        return int(connection.recv(LENGTH) or b"1")


def serve(listening: str) -> None:
    """Import what the scripts do, and run them as they come."""
    import runpy

    for script in sorted((ROOT / "workflow/scripts").glob("*.py")):
        runpy.run_path(str(script), run_name="imported")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(listening)
        server.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection, Path(listening).with_name("python"))
            connection.close()


def _answer(connection: socket.socket, program: Path) -> None:
    """Run one script in a child, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(connection, LENGTH, 3)
    length, request = int.from_bytes(head), b""
    while len(request) < length:
        request += connection.recv(length - len(request))
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.executable = str(program)  # what it starts is warm as well
        become(**json.loads(request))
    _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    connection.sendall(str(status if status >= 0 else 128 - status).encode())
    os._exit(0)


def become(words: list[str], environment: dict[str, str], folder: str) -> NoReturn:
    """Run a script as `python WORDS` does with this environment in this folder, and end this process as it does."""
    import runpy
    import traceback
    from importlib import reload

    import datasets
    from huggingface_hub import constants

    status = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for module in (constants, datasets.config):  # they read variables when they are imported
            reload(module)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    elif len(sys.argv) > 2 and sys.argv[2].endswith(".py"):
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    else:
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
