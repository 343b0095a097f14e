"""rlhf-memory: what a stage would need, whether it fits, and what would help.

    rlhf-memory path/to/model --stage sft --gpu a100-40g --gpus 8 --set lora_dim=128 --set execution.zero_stage=3

The model is a Hugging Face folder or a config.json; no weights and no GPU are needed. Exit status: 0 it fits (or no GPU
is named), 3 it does not fit, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from rlhf.config.expand import deep_merge
from rlhf.config.section import mistakes
from rlhf.config.stages import PpoSection, RewardSection, SftSection
from rlhf.config.yaml_text import read_yaml
from rlhf.errors import UserError
from rlhf.memory.devices import GIB, find_device
from rlhf.memory.parts import ALL_KINDS
from rlhf.planning.forecast import read_config, stored_adapters
from rlhf.planning.plan import plan_stage
from rlhf.records.plan import MemoryPlan

StageSection = SftSection | RewardSection | PpoSection
FITS, BAD_INPUT, DOES_NOT_FIT = 0, 2, 3
SECTIONS: dict[str, type[StageSection]] = {"sft": SftSection, "reward": RewardSection, "ppo": PpoSection}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="model folder or config.json; for ppo, of the policy")
    parser.add_argument("--reward-model", type=Path, help="the same of the reward model, for ppo")
    parser.add_argument("--stage", choices=list(SECTIONS), default="sft", help="default: sft")
    parser.add_argument("--gpu", help="name in the table of devices, for example a100-40g")
    parser.add_argument("--gpu-memory-gib", type=float, help="capacity of a GPU that is not in the table")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of a node; 0: on the CPU; default: 1")
    parser.add_argument("--nodes", type=int, default=1, help="nodes; default: 1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the stage")
    parser.add_argument("--adapt", action="store_true", help="take steps that do not change the result until it fits")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return parser.parse_args(argv)


def stage_section(args: argparse.Namespace) -> StageSection:
    """Settings of the stage, and how it runs.

    Raises:
        UserError: a key is unknown or a value is wrong.
    """
    given: dict[str, Any] = {"execution": {"gpus_per_node": args.gpus, "nodes": args.nodes}}
    for text in args.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write KEY=VALUE, for example execution.zero_stage=3")
        nested: Any = read_yaml(value, f"--set {key}")
        for part in reversed(key.split(".")):
            nested = {part: nested}
        given = deep_merge(given, nested)
    try:
        return SECTIONS[args.stage].model_validate(given)
    except ValidationError as error:
        place, message = mistakes(error)[0]
        raise UserError(f"--set {place}: {message}" if place else f"--set: {message}") from None


def make_plan(args: argparse.Namespace) -> MemoryPlan:
    """The plan that the arguments ask for."""
    section = stage_section(args)
    if args.stage == "ppo":
        if args.reward_model is None:
            raise UserError("--reward-model: ppo needs the reward model's configuration too")
        models = {"policy": args.model, "reward": args.reward_model}
    else:
        models = {"model": args.model}
    configs = {role: read_config(path) for role, path in models.items()}
    earlier = {role: stored_adapters(path) for role, path in models.items()}
    named = args.gpu is not None or args.gpu_memory_gib is not None
    device = find_device(args.gpu, args.gpu_memory_gib) if named else None
    on_misfit = "adapt" if args.adapt else "warn"
    return plan_stage(args.stage, section, section.execution, configs, device, on_misfit, earlier)


def show(plan: MemoryPlan, console: Console) -> None:
    """The plan as a table and sentences."""
    console.print(_table(plan))
    _show_numbers(plan, console)
    for entry in plan["adaptations"]:
        console.print(f"taken: {entry['name']}, saves {_gib(entry['saves'])} GiB ({entry['cost']})", soft_wrap=True)
    for entry in plan["advice"]:
        console.print(
            f"would help: {entry['name']}, saves {_gib(entry['saves'])} GiB ({entry['cost']})", soft_wrap=True
        )
    if plan["remedy"]:
        console.print(f"not enough: {plan['remedy']}", soft_wrap=True)
    closed = plan["closed_form"]
    if closed:
        terms = {name: closed[name] for name in ("weights", "activations", "logits")}
        article = {name: closed["article"][name] for name in ("weights", "activations")}
        for title, amounts in (("closed form", terms), ("the article's formula", article)):
            shown = ", ".join(f"{name} {_gib(amount)} GiB" for name, amount in amounts.items())
            console.print(f"{title}: {shown}", soft_wrap=True)


TITLES = {"gradients": "grads", "optimizer": "optim", "activations": "activ", "kv_cache": "cache"}


def _table(plan: MemoryPlan) -> Table:
    table = Table(
        title=f"{plan['stage']}: GiB of one process", box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False
    )
    table.add_column("phase", no_wrap=True)
    for name in (*ALL_KINDS, "total"):
        table.add_column(TITLES.get(name, name), justify="right", no_wrap=True)
    for part in plan["phases"]:
        sums = dict.fromkeys(ALL_KINDS, 0)
        for row in part["rows"]:
            sums[row["kind"]] += row["bytes"]
        name = part["part"] if part["part"].startswith(part["phase"]) else f"{part['phase']}, {part['part']}"
        table.add_row(
            name, *(f"{amount / GIB:.1f}" if amount else "" for amount in sums.values()), _gib(part["allocated"])
        )
    return table


def _show_numbers(plan: MemoryPlan, console: Console) -> None:
    allocated, host = _gib(plan["expected_allocated"]), plan["resources"]["mem_mb"]
    text = f"expected: {allocated} GiB of tensors"
    expected, upper = plan["expected_device"], plan["upper_device"]
    if expected is not None and upper is not None:
        text += f", {_gib(expected)} GiB on the device, at most {_gib(upper)} GiB"
    disk = _gib(sum(plan["disk"].values()))
    console.print(f"{text}; {host} MB of host memory per node; {disk} GiB on disk", soft_wrap=True)
    if plan["device"]:
        capacity = _gib(plan["device"]["capacity"])
        console.print(f"verdict: {plan['verdict']} on {plan['device']['name']} ({capacity} GiB)", soft_wrap=True)


def _gib(amount: int) -> str:
    return f"{amount / GIB:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script `rlhf-memory`; returns its exit status."""
    warnings.simplefilter("ignore", FutureWarning)  # of transformers' own deprecations
    args = parse_args(argv)
    try:
        plan = make_plan(args)
    except UserError as error:
        print(f"rlhf-memory: {error}", file=sys.stderr)
        return BAD_INPUT
    if args.json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan, Console())
    return DOES_NOT_FIT if plan["verdict"] == "does not fit" else FITS


if __name__ == "__main__":
    sys.exit(main())
