"""Runs stages as their scripts do, and notes what they draw at random.

All that these tests know of how `rlhf` works inside is in `Witness`; everything else goes in as configuration and
comes out as files.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from rlhf.config import resolve
from rlhf.config.effects import experiment_without_effect, leave_out
from rlhf.config.expand import deep_merge, expand
from rlhf.config.stages import PpoSettings, RewardSettings, SftSettings
from rlhf.ppo.update import PpoUpdate
from rlhf.training.engine import Trainer
from rlhf.training.faults import FaultCounter
from tests.conftest import ROOT
from tests.oracle.material import Row, write_rows
from tests.oracle.networks import Adapters
from tests.oracle.ppo import Rollout
from tests.pipeline.run_scripts import load

Weights = dict[str, np.ndarray]


@dataclass
class Witness:
    """What running stages drew at random, and the models they trained.

    Attributes:
        batches: (number of the dataset, row in it) of each optimizer step; in PPO, of the prompts of the rollout.
        rollouts: of PPO.
        trainers: of all models that trained, in the order in which they were made.
        starts: the weights of each of them before the first step.
    """

    batches: list[list[tuple[int, int]]] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)
    trainers: list[Trainer] = field(default_factory=list)
    starts: list[Weights] = field(default_factory=list)

    @classmethod
    def of(cls, patch: pytest.MonkeyPatch) -> Witness:
        """A witness of all stages that run in this process until the patch ends."""
        witness = cls()
        make, check, train = Trainer.__init__, FaultCounter.check, PpoUpdate.run

        def made(trainer: Trainer, model: Any, *args: Any, **kwargs: Any) -> None:
            make(trainer, model, *args, **kwargs)
            witness.trainers.append(trainer)
            witness.starts.append(weights_of(model))

        def checked(counter: FaultCounter, step: int, loss: Any, norm: Any, rows: Any) -> bool:
            witness.batches.append([tuple(row) for row in rows])
            return check(counter, step, loss, norm, rows)

        def trained(update: PpoUpdate, experience: Any, *args: Any, **kwargs: Any) -> Any:
            samples = experience.samples
            witness.rollouts.append(
                Rollout(
                    [np.array(prompt) for prompt in samples.prompts],
                    [np.array(answer.ids) for answer in samples.answers],
                    [bool(end) for end in samples.finished],
                    [[_rows(minibatch) for minibatch in epoch] for epoch in experience.scores.partition.epochs],
                )
            )
            return train(update, experience, *args, **kwargs)

        patch.setattr(Trainer, "__init__", made)
        patch.setattr(FaultCounter, "check", checked)
        patch.setattr(PpoUpdate, "run", trained)
        return witness

    def model(self, has_scores: bool) -> tuple[Weights, Weights]:
        """Weights at the start and now of the only model that trained with a score head, or without one."""
        pairs = [(start, weights_of(trainer.module)) for start, trainer in zip(self.starts, self.trainers, strict=True)]
        (only,) = (pair for pair in pairs if ("score.weight" in pair[0]) == has_scores)
        return only


def _rows(minibatch: Sequence[Any]) -> np.ndarray:
    return np.concatenate([micro.rows for micro in minibatch if micro.weight])


def weights_of(model: Any) -> Weights:
    """All weights of a model in training by their names in the plain model; adapters end with `lora_A`, `lora_B`."""
    return {_plain(name): weight.detach().numpy().copy() for name, weight in model.named_parameters()}


def adapters_of(weights: Weights) -> Adapters:
    """The adapter matrices A and B of each module."""
    modules = [name.removesuffix(".lora_A") for name in weights if name.endswith(".lora_A")]
    return {name: (weights[f"{name}.lora_A"], weights[f"{name}.lora_B"]) for name in modules}


def _plain(name: str) -> str:
    """A value model is one module inside another, and an adapted module keeps its own weight one level deeper."""
    name = name.replace(".base_layer.", ".").replace(".default.weight", "")
    inside = name.startswith(("model.transformer.", "model.model.", "model.score."))
    return name.removeprefix("model.") if inside else name


def weights_in(folder: Path) -> Weights:
    """The weights in a model folder."""
    return {name: weight.numpy() for name, weight in load_file(folder / "model.safetensors").items()}


@dataclass
class Outcome:
    """A stage that has run."""

    output: Path
    spec: dict[str, Any]
    witness: Witness

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the stage: those of spec.yaml, over the defaults of what has no effect and is not written."""
        defaults = {"sft": SftSettings, "reward": RewardSettings, "ppo": PpoSettings}.get(self.spec["stage"])
        return deep_merge({} if defaults is None else defaults().model_dump(mode="json"), self.spec["settings"])

    @property
    def evaluation(self) -> dict[str, Any]:
        """What an evaluation wrote."""
        return json.loads((self.output / "evaluation.json").read_text())

    def lines(self, phase: str) -> list[dict[str, Any]]:
        """The metrics of training steps (`train`) or of evaluations (`eval`)."""
        return [row for row in self.jsonl("metrics.jsonl") if row["phase"] == phase]

    def jsonl(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file."""
        return [json.loads(line) for line in (self.output / name).read_text().splitlines()]


@dataclass(frozen=True)
class Data:
    """A dataset: its rows, and the folders of the data stages."""

    train: list[Row]
    unseen: list[Row]
    tokens: Path
    split: Path

    def rows_of(self, phase: str) -> list[int]:
        """Numbers of the training rows that belong to a phase."""
        return np.load(self.split / f"train.{phase}.npy").tolist()


def make_data(folder: Path, train: list[Row], unseen: list[Row], tokenizer: Path, data_split: str) -> Data:
    """Cache, tokenise and split a dataset, each by its script."""
    folder.mkdir(parents=True)
    for name, rows in (("train", train), ("eval", unseen)):
        write_rows(rows, folder / f"{name}.jsonl")
    source = {"path": {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}}
    specs = _plan({"source": source, "shape": "ranked"}, {"data_split": data_split}, seed=1)
    cached, tokens, split = (folder / name for name in ("dataset", "tokens", "split"))
    dataset, divided = (_only(specs, kind) for kind in ("dataset", "split"))
    call("cache_dataset", spec=_written(dataset, folder / "dataset.yaml"), place="datasets.data", output=cached)
    call("tokenize_dataset", dataset=cached, model=tokenizer, output=tokens)
    call("split_dataset", spec=_written(divided, folder / "split.yaml"), dataset=cached, output=split)
    return Data(train, unseen, tokens, split)


def run(
    kind: str,
    output: Path,
    data: Sequence[Data],
    experiment: dict[str, Any],
    seed: int = 7,
    idle: dict[str, Any] | None = None,
    **folders: Path,
) -> Outcome:
    """Run a stage of an experiment with one seed; the arguments are those of `command`."""
    with pytest.MonkeyPatch.context() as patch:
        witness = Witness.of(patch)
        script, arguments = command(kind, output, data, experiment, seed, idle, **folders)
        call(script, **arguments)
    return Outcome(output, yaml.safe_load((output / "spec.yaml").read_text()), witness)


def command(
    kind: str,
    output: Path,
    data: Sequence[Data],
    experiment: dict[str, Any],
    seed: int = 7,
    idle: dict[str, Any] | None = None,
    **folders: Path,
) -> tuple[str, dict[str, Any]]:
    """The script of a stage of an experiment with one seed, and its arguments.

    Args:
        kind: of the stage, as `ppo` or `evaluate_ppo`.
        output: its folder.
        data: datasets.
        experiment: settings as under `experiments.NAME`, with those of `execution` among them.
        seed: of the stage.
        idle: settings that are written though they have no effect.
        folders: further arguments of the script, such as `sft`.
    """
    source = {"path": "train.jsonl"}
    stages = _plan({"source": source, "gold_reward": "tests.oracle.material:gold"}, experiment, seed, len(data))
    stage = _only(stages, kind)
    output.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "spec": _written(stage, output / "spec.yaml", idle or {}),
        "execution": stage.job.model_dump_json(),
        "tokens": [one.tokens for one in data],
        "split": [one.split for one in data],
        "output": output,
        "state": output / "state",
        **folders,
    }
    script = kind if kind.startswith("evaluate_") else f"sample_{kind}" if kind == "baseline" else f"train_{kind}"
    return script, arguments


def script_file(script: str) -> str:
    """Where a script of the workflow is."""
    return str(ROOT / f"workflow/scripts/{script}.py")


def _plan(dataset: dict[str, Any], experiment: dict[str, Any], seed: int, count: int = 1) -> list[tuple[str, Any]]:
    """The stages of a configuration of this experiment alone, with their kinds; keys without effect are left out."""
    names = [f"data-{number}" for number in range(count)]
    model = {"source": {"path": "model"}}
    base = {"data_path": names, "policy": "model", "reward_model": "model", "seeds": [seed]}
    own = deep_merge(base, experiment)
    ((_, settings),) = expand("oracle", own)
    leave_out(own, experiment_without_effect(settings, own_splits=False))
    config = {
        "datasets": {name: copy.deepcopy(dataset) for name in names},
        "models": {"model": model},
        "experiments": {"oracle": own},
    }
    plan = resolve(config, lambda path, key: path)
    return [(kind, stage) for (kind, _), stage in plan.stages.items()]


def _only(stages: list[tuple[str, Any]], kind: str) -> Any:
    (stage,) = {stage.id: stage for name, stage in stages if name == kind}.values()
    return stage


def _written(stage: Any, file: Path, settings: dict[str, Any] | None = None) -> Path:
    file.write_text(yaml.safe_dump(deep_merge(stage.spec(), {"settings": settings or {}})))
    return file


def words_of(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments as a command line has them."""
    return [
        word
        for name, value in arguments.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def call(script: str, **arguments: Any) -> None:
    """Run a script of the workflow in this process, which has a process group already."""
    module = load(script_file(script))
    module.processes = lambda *_: contextlib.nullcontext()  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words_of(arguments)])
        module.main(module.parse_args())
