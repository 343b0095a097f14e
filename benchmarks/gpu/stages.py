"""Stages of a configuration, run by their scripts as the rules run them, but without Snakemake."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from rlhf.config import Run, Stage, dumped, resolve
from rlhf.config.expand import deep_merge

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
Command = list[str]


class Workplace:
    """A folder with the layout of a project, and the commands that fill it.

    Specifications come from the configuration, as in a project. A command names its output folder itself, so that one
    stage can run several times, each time another way.

    Args:
        folder: of the project; local files of the configuration are not read for their hashes.
        config: a configuration with all its experiments.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self._plan = resolve(config, lambda path, _: hashlib.sha256(path.encode()).hexdigest())

    def stage(self, experiment: str, kind: str) -> Stage:
        """A stage of an experiment's only run."""
        run = self._run(experiment)
        return self._plan.stages[kind, run.stages[kind]]

    def model(self, experiment: str, role: str = "policy") -> Path:
        """Folder of a model that training starts from; `role`: `policy` or `reward_model`."""
        return self.folder / "resources/models" / self._run(experiment).stages[role] / "model"

    def data(self) -> list[Command]:
        """Commands that read the datasets and divide their rows among the phases."""
        commands = []
        for stage in self._plan.of_kind("dataset"):
            output = self._dataset(stage.id)
            commands.append(_command("cache_dataset", spec=self._spec(stage), place=stage.place, output=output))
        for stage in self._plan.of_kind("split"):
            dataset, output = self._dataset(_upstream(stage)["dataset"]), self._split(stage.id)
            commands.append(_command("split_dataset", spec=self._spec(stage), dataset=dataset, output=output))
        return commands

    def models(self) -> list[Command]:
        """Commands that fetch or make the models that training starts from."""
        commands = []
        for stage in self._plan.of_kind("model"):
            datasets = [self._dataset(id) for id in _upstream(stage).values()]
            output = self.folder / "resources/models" / stage.id
            own = {"spec": self._spec(stage), "place": stage.place, "output": output}
            commands.append(_command("cache_model", **own, **({"dataset": datasets} if datasets else {})))
        return commands

    def tokens(self) -> list[Command]:
        """Commands that turn the datasets into ids; the models' tokenizers must be there."""
        commands = []
        for stage in self._plan.of_kind("tokens"):
            dataset = self._dataset(_upstream(stage)["dataset"])
            model = self.folder / "resources/models" / _upstream(stage)["model"] / "model"
            output = self.folder / "results/tokens" / stage.id
            commands.append(_command("tokenize_dataset", dataset=dataset, model=model, output=output))
        return commands

    def train(
        self,
        experiment: str,
        kind: str,
        name: str,
        execution: dict[str, Any] | None = None,
        start: dict[str, Path] | None = None,
    ) -> Command:
        """The command of a training stage.

        Args:
            experiment: whose stage it is.
            kind: `sft`, `reward` or `ppo`.
            name: of the output below results/KIND and of the state below state/KIND.
            execution: changes of how it runs.
            start: for `ppo`: `sft` and `reward`, the model folders it starts from.
        """
        stage = self.stage(experiment, kind)
        if kind != "ppo":
            start = {"model": self.model(experiment, "reward_model" if kind == "reward" else "policy")}
        assert start is not None
        tokens, splits = self.rows(experiment, kind)
        return _command(
            f"train_{kind}",
            spec=self._spec(stage, name),
            execution=self._execution(stage, execution),
            tokens=tokens,
            split=splits,
            **start,
            output=self.output(kind, name),
            state=self.folder / "state" / kind / name,
        )

    def plan(
        self, experiment: str, kind: str, name: str, execution: dict[str, Any] | None, gpu: dict[str, Any]
    ) -> Command:
        """The command that plans a training stage's memory: memory_plan.json in its output folder.

        Args:
            experiment: whose stage it is.
            kind: `sft`, `reward` or `ppo`.
            name: as in `train`.
            execution: as in `train`.
            gpu: `gpu` and `gpu_memory_gib` of the configuration's `memory`.
        """
        stage = self.stage(experiment, kind)
        roles = {"sft": ("policy",), "reward": ("reward_model",), "ppo": ("policy", "reward_model")}[kind]
        before = ("sft", "reward") if kind == "ppo" else ()
        return _command(
            "plan_memory",
            spec=self._spec(stage, name),
            execution=self._execution(stage, execution),
            memory=json.dumps({"gpu": None, "gpu_memory_gib": None, "on_misfit": "warn"} | gpu),
            model=[self.model(experiment, role) for role in roles],
            upstream=[self._spec(self.stage(experiment, earlier)) for earlier in before],
            output=self.output(kind, name) / "memory_plan.json",
        )

    def rows(self, experiment: str, kind: str) -> tuple[list[Path], list[Path]]:
        """Folders of the token ids and of the index files that a training stage reads."""
        upstream = _upstream(self.stage(experiment, kind))
        tokens = [self.folder / "results/tokens" / id for id in upstream["tokens"]]
        return tokens, [self._split(id) for id in upstream["split"]]

    def output(self, kind: str, name: str) -> Path:
        """Where a training stage writes."""
        return self.folder / "results" / kind / name

    def _run(self, experiment: str) -> Run:
        (run,) = (run for run in self._plan.runs if run.experiment == experiment)
        return run

    def _dataset(self, id: str) -> Path:
        return self.folder / "resources/datasets" / id

    def _split(self, id: str) -> Path:
        return self.folder / "results/split" / id / "rows"

    def _spec(self, stage: Stage, name: str | None = None) -> Path:
        file = self.folder / "results" / stage.kind / (name or stage.id) / "spec.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(stage.spec(), sort_keys=False), encoding="utf-8")
        return file

    def _execution(self, stage: Stage, changes: dict[str, Any] | None) -> str:
        return json.dumps(deep_merge(dumped(stage.job), changes or {}))


def _upstream(stage: Stage) -> dict[str, Any]:
    """What a stage is made from: role -> ID, or IDs."""
    upstream: dict[str, Any] = stage.spec()["upstream"]
    return upstream


def _command(script: str, **arguments: Path | str | list[Path]) -> Command:
    words = [str(SCRIPTS / f"{script}.py")]
    for name, value in arguments.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
