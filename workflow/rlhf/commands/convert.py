"""`rlhf-convert`: turn scripts of DeepSpeed-Chat into a configuration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf.convert.arguments import Command, read_command, require_step
from rlhf.convert.configuration import Choices, convert, render
from rlhf.convert.programs import PROGRAMS
from rlhf.convert.shell import PROGRAM
from rlhf.errors import UserError
from rlhf.runtime.logging import run_script

EPILOG = """\
example:
  rlhf-convert --sft run_13b.sh --reward run_350m.sh --ppo run_13b_ppo.sh --gpus 8 --output opt-13b.yaml

Variables that a script takes from its arguments are set with --set, for one step with its name in front:
  --set ZERO_STAGE=3 --set reward.ZERO_STAGE=0
"""


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-convert", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for number, phase in enumerate(PROGRAMS, start=1):
        meaning = f"script of step {number}, `-` for standard input, or the command line itself in quotes"
        parser.add_argument(f"--{phase}", metavar="SCRIPT", help=meaning)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="value of a shell variable")
    parser.add_argument("--gpus", type=int, help="GPUs of each node, where the launcher takes all of the machine")
    parser.add_argument("--nodes", type=int, help="nodes (default: what the launcher says, else 1)")
    parser.add_argument("--policy", metavar="MODEL", help="hub name or folder of the model that step 1 starts from")
    parser.add_argument("--reward-model", metavar="MODEL", help="hub name or folder of the model of step 2")
    parser.add_argument("--name", help="name of the experiment (default: that of the policy)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Convert, and write the configuration.

    Raises:
        UserError: no script is given, one cannot be converted, or the output exists.
    """
    given = {phase: getattr(args, phase) for phase in PROGRAMS if getattr(args, phase) is not None}
    if not given:
        raise UserError("give at least one script: --sft, --reward or --ppo; --help shows an example")
    if args.output and args.output.exists():
        raise UserError(f"--output {args.output} exists; remove it, or choose another name")
    for option in ("gpus", "nodes"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)}; give a positive number")
    variables = _variables(args.set)
    commands: dict[str, Command] = {}
    for phase, source in given.items():
        place, text = _read(phase, source)
        commands[phase] = read_command(phase, place, text, variables[""] | variables[phase])
    converted = convert(commands, Choices(args.gpus, args.nodes, args.policy, args.reward_model, args.name))
    document = render(converted, [command.place for command in commands.values()])
    if args.output:
        args.output.write_text(document, encoding="utf-8")
    else:
        sys.stdout.write(document)


def _variables(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Phase, or "" for all -> shell variables."""
    found: dict[str, dict[str, str]] = {phase: {} for phase in ("", *PROGRAMS)}
    for word in words:
        name, sign, value = word.partition("=")
        phase, _, variable = name.rpartition(".")
        if not sign or not variable or phase not in found:
            raise UserError(f"--set {word}: write NAME=VALUE, or {', '.join(PROGRAMS)} and a dot in front of NAME")
        found[phase][variable] = value
    return found


def _read(phase: str, source: str) -> tuple[str, str]:
    """(name for messages, text) of a script, of standard input, or of a command line."""
    if source == "-":
        return f"--{phase} -", sys.stdin.read()
    if f"{PROGRAM} " in source:
        return f"the command line of --{phase}", source
    require_step(phase, str(Path(source).absolute()))
    try:
        return source, Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--{phase} {source}: cannot be read ({error})") from None


def main() -> None:
    """Entry point of the console script `rlhf-convert`."""
    run_script(lambda: run(parse_args()))


if __name__ == "__main__":
    main()
