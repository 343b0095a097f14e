"""From the commands of one, two or three steps to a configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rlhf.config import PHASES, resolve
from rlhf.config.compatibility import PRESETS
from rlhf.config.effects import experiment_without_effect, leave_out
from rlhf.config.expand import expand
from rlhf.config.schema import ExperimentSettings
from rlhf.convert.arguments import Command
from rlhf.convert.flags import CORE, Value
from rlhf.convert.programs import PROGRAMS
from rlhf.convert.sources import Section, dataset, model, names_of_paths
from rlhf.errors import UserError

COMPATIBILITY = "deepspeed_chat"
EMA_DECAY = 0.992  # fixed in DeepSpeed-Chat's trainer
_PRESET = PRESETS[COMPATIBILITY]
DEFAULTS: Section = ExperimentSettings.model_validate(_PRESET).model_dump(mode="json")


@dataclass
class Converted:
    """A configuration, and what the reader of its file should know.

    Attributes:
        config: content of the YAML file.
        notes: what differs from the scripts.
        reported: `--flag` of a phase -> why it has no key here.
    """

    config: Section
    notes: list[str] = field(default_factory=list)
    reported: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choices:
    """What scripts may leave open, as options of the command line say it."""

    gpus: int | None = None
    nodes: int | None = None
    policy: str | None = None
    reward_model: str | None = None
    name: str | None = None


def convert(commands: dict[str, Command], choices: Choices) -> Converted:
    """A configuration that computes what the commands compute.

    Args:
        commands: phase -> its command; at least one.
        choices: what the commands leave open.

    Raises:
        UserError: something is left open, or the steps contradict each other.
    """
    converted = Converted({"datasets": {}, "models": {}, "experiments": {}})
    experiment: Section = {"compatibility": COMPATIBILITY}
    if "ppo" not in commands:  # which needs the other two, and where defaults stand for those that are not given
        experiment["phases"] = [phase for phase in PHASES if phase in commands]
    _sources(converted, experiment, commands, choices)
    for command in commands.values():
        gpus, nodes = _processes(command, choices)
        _set(experiment, f"{command.phase}.execution.nodes", nodes)
        _set(experiment, f"{command.phase}.execution.gpus_per_node", gpus)
        _copied(experiment, command)
        _offload(converted, experiment, command)
        if command.phase == "ppo":
            _ppo(converted, experiment, command, gpus * nodes)
        else:
            _batches(experiment, command, gpus * nodes)
        converted.notes += command.notes
        converted.reported |= _reported(command)
    _set(experiment, "evaluation.execution.gpus_per_node", 1)
    absent = [phase for phase in experiment.get("phases", PHASES) if phase not in commands]
    if absent:
        converted.notes.append(f"no script was given for {' and '.join(absent)}: defaults stand there; check them")
    name = choices.name or experiment.get("policy") or experiment["reward_model"]
    converted.config["experiments"][name] = experiment
    _leave_out_what_changes_nothing(converted, experiment, name)
    resolve(converted.config, lambda path, key: "not read")  # a mistake must show now, not when it is run
    return converted


def render(converted: Converted, places: Sequence[str]) -> str:
    """The configuration file: what it was made from and what differs as comments, then YAML."""
    parts = [f"Converted from {', '.join(places)} by rlhf-convert.", ""]
    parts += ["threads, mem_mb and runtime are not in the scripts: set them under `execution` for a cluster.", ""]
    if converted.notes:
        parts += ["What differs from the scripts:", *(f"- {note}" for note in dict.fromkeys(converted.notes)), ""]
    if converted.reported:
        parts += [
            "Flags without an effect here:",
            *(f"- {name}: {why}" for name, why in converted.reported.items()),
            "",
        ]
    lines = [line for part in parts[:-1] for line in _wrapped(part)]
    return "\n".join(lines) + "\n\n" + yaml.safe_dump(converted.config, sort_keys=False, width=100)


def _wrapped(text: str) -> list[str]:
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(text, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"# {line}".rstrip() for line in lines]


def _copied(experiment: Section, command: Command) -> None:
    """Copy flags whose value is that of a key: where they are given, and where DeepSpeed-Chat's default is another."""
    for flag in PROGRAMS[command.phase]:
        value = command.value(flag.name)
        for key in flag.keys if flag.use == "copy" else ():
            if flag.name in command.given or (value is not None and value != _get(DEFAULTS, key)):
                _set(experiment, key, value)


def _offload(converted: Converted, experiment: Section, command: Command) -> None:
    if not command.value("offload"):
        return
    stages = ("actor_zero_stage", "critic_zero_stage") if command.phase == "ppo" else ("zero_stage",)
    if any(command.value(stage) for stage in stages):
        _set(experiment, f"{command.phase}.execution.offload", True)
    else:
        converted.notes.append(f"--offload of {command.phase} is left out: without ZeRO (stage 0) nothing is moved")


def _leave_out_what_changes_nothing(converted: Converted, experiment: Section, name: str) -> None:
    """Leave out flags that have no effect in DeepSpeed-Chat either, such as those of LoRA where its rank is 0."""
    own_splits = all("data_split" in each for each in converted.config["datasets"].values())
    ((_, settings),) = expand(name, experiment)
    for key, reason in leave_out(experiment, experiment_without_effect(settings, own_splits)).items():
        converted.notes.append(f"{key} is left out, as it has no effect: {reason}")


def _batches(experiment: Section, command: Command, processes: int) -> None:
    phase, size = command.phase, command.number("per_device_train_batch_size")
    _set(experiment, f"{phase}.global_batch_size", size * processes * command.number("gradient_accumulation_steps"))
    _set(experiment, f"{phase}.execution.per_device_train_batch_size", size)


def _ppo(converted: Converted, experiment: Section, command: Command, processes: int) -> None:
    prompts, minibatches = rollout_sizes(command, processes)
    _set(experiment, "ppo.prompts_per_rollout", prompts)
    _set(experiment, "ppo.minibatches", minibatches)
    for use in ("generation", "training"):
        key = f"per_device_{use}_batch_size"
        _set(experiment, f"ppo.execution.{key}", command.number(key))
    if command.value("enable_ema"):
        _set(experiment, "ppo.ema_decay", EMA_DECAY)
    if command.value("unsupervised_dataset_name") and command.value("unsupervised_dataset_config_name"):
        _set(experiment, "ppo.ptx_coefficient", command.value("unsup_coef"))
        _set(experiment, "ppo.ptx_rows_per_step", prompts // minibatches)
        corpus = command.value("unsupervised_dataset_name")
        converted.notes.append(
            f"ppo mixes in rows of the SFT phase, not {corpus}; lower ppo.ptx_coefficient if unstable"
        )
    for role in ("actor", "critic"):
        rate = command.get(f"{role}_dropout", float)
        if rate != 0.0:
            given = "leaves the model's own dropout on" if rate is None else f"has a dropout of {rate:g}"
            converted.notes.append(f"the script {given} in the {role} of PPO; here it is 0")


def rollout_sizes(command: Command, processes: int) -> tuple[int, int]:
    """Prompts of a rollout over all processes, and optimizer steps of each pass over it.

    DeepSpeed-Chat collects `generation_batches` batches, cuts them into training batches, and takes an optimizer step
    after `gradient_accumulation_steps` of these. Where a step needs more than one such collection, the rollout here
    is what the step is made of.

    Raises:
        UserError: the sizes do not divide each other, so that steps would straddle rollouts.
    """
    generation, training = (command.number(f"per_device_{use}_batch_size") for use in ("generation", "training"))
    collected = generation * command.number("generation_batches")
    accumulated = training * command.number("gradient_accumulation_steps")
    if collected % training == 0 and collected % accumulated == 0:
        return collected * processes, collected // accumulated
    if collected % training == 0 and accumulated % collected == 0 and command.value("ppo_epochs") == 1:
        return accumulated * processes, 1
    raise UserError(
        f"{command.place}: {collected} prompts are collected per device and {accumulated} make an optimizer step "
        f"(batches of {training}, {command.value('ppo_epochs')} passes): steps would straddle rollouts. "
        "Choose sizes that divide each other"
    )


def _sources(converted: Converted, experiment: Section, commands: dict[str, Command], choices: Choices) -> None:
    """Datasets, models, split and seed, which all phases share."""
    config = converted.config
    starts = _models(commands, choices, experiment.get("phases", PHASES))
    models = names_of_paths(starts.values())
    config["models"] = {name: model(path) for path, name in models.items()}
    experiment |= {role: models[path] for role, path in starts.items()}
    lists = {phase: command.words("data_path") for phase, command in commands.items()}
    names = list(dict.fromkeys(path for paths in lists.values() for path in paths))
    sft_only = commands["sft"].words("sft_only_data_path") if "sft" in commands else []
    for path, name in names_of_paths([*names, *sft_only]).items():
        config["datasets"][name], notes = dataset(path, sft_only=path not in names)
        converted.notes += notes
    experiment["data_path"] = list(config["datasets"])
    for phase, paths in lists.items():
        if set(paths) != set(names):
            converted.notes.append(f"the script of {phase} reads only {', '.join(paths)}; here all phases share a list")
    experiment["data_split"] = _common(commands, "data_split", converted)
    seed = _common({phase: c for phase, c in commands.items() if c.value("seed") is not None}, "seed", converted)
    experiment |= {"split_seed": seed, "seeds": [seed]} if seed is not None else {}
    if seed is None or ("ppo" in commands and commands["ppo"].value("seed") is None):
        converted.notes.append("the script of ppo gives no seed and draws its rows at random; here one seed serves all")


def _common(commands: dict[str, Command], flag: str, converted: Converted) -> Value:
    """The value of a flag in the first script; a note says so where other scripts have another one."""
    values = {phase: command.value(flag) for phase, command in commands.items()}
    first = next(iter(values.values()), None)
    for phase, value in values.items():
        if value != first:
            converted.notes.append(f"--{flag} is {value} in the script of {phase}; here {first} holds for all phases")
    return first


def _models(commands: dict[str, Command], choices: Choices, phases: Collection[str]) -> dict[str, str]:
    """Role -> hub name or folder of the model that a phase starts from."""
    found = {}
    for role, phase, chosen, what in (
        ("policy", "sft", choices.policy, "the model that step 1 starts from"),
        ("reward_model", "reward", choices.reward_model, "the model of step 2"),
    ):
        option = f"--{role.replace('_', '-')}"
        if phase in phases:
            found[role] = _model_of(commands.get(phase), chosen, option, what)
        elif chosen is not None:
            raise UserError(
                f"{option} {chosen}: no script was given that uses it; leave it out, or add --{phase} or --ppo"
            )
    return found


def _model_of(command: Command | None, chosen: str | None, option: str, what: str) -> str:
    name = chosen or (command.get("model_name_or_path", str) if command else None)
    if name is None:
        place = f"{command.place}: no --model_name_or_path" if command else f"no script names {what}"
        raise UserError(f"{place}; give it with {option}, a hub name or a folder")
    return name


def _processes(command: Command, choices: Choices) -> tuple[int, int]:
    """GPUs of each node, and nodes."""
    gpus = choices.gpus or command.launch.get("num_gpus")
    nodes = choices.nodes or command.launch.get("num_nodes") or 1
    if gpus is None:
        raise UserError(
            f"{command.place}: the launcher takes all GPUs of the machine, and the script does not say how many; "
            "give them with --gpus, for example --gpus 8"
        )
    return gpus, nodes


def _reported(command: Command) -> dict[str, str]:
    """Given flags that have no effect here -> the reason."""
    flags = {flag.name: flag for flag in (*PROGRAMS[command.phase], *CORE) if flag.use == "report"}
    found = {f"{command.phase}: --{name}": flags[name].note for name in command.given if name in flags}
    others = [name for name in command.launch if name not in ("num_gpus", "num_nodes")]
    launcher = {
        f"{command.phase}: launcher --{name}": "Stages are started as config/README.md says." for name in others
    }
    return found | launcher


def _set(section: Section, dotted: str, value: Value) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        section = section.setdefault(key, {})
    section[last] = value


def _get(section: Section, dotted: str) -> Any:
    for key in dotted.split("."):
        section = section[key]
    return section
