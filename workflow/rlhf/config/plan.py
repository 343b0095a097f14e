"""The plan: all runs of a configuration and the stages they share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from rlhf.config.requirements import Requirement
from rlhf.config.schema import MemorySettings
from rlhf.config.section import Section
from rlhf.config.stages import JobExecution
from rlhf.phases import EVALUATIONS, PHASES, PLANNED
from rlhf.records.experiment import ExperimentRun, runs_text

RESULTS: dict[str, str] = {  # stage kind -> a file or folder of its results, by the stage's ID
    "dataset": "resources/datasets/{}/report.json",
    "model": "resources/models/{}/manifest.json",
    "tokens": "results/tokens/{}",
    "split": "results/split/{}/rows",
    **{kind: f"results/{kind}/{{}}/manifest.json" for kind in PHASES},
    **{kind: f"results/{kind}/{{}}/evaluation.json" for kind in EVALUATIONS},
}


# What decides which rows a training stage has, and whether they will do.
ROW_LIMITS = {
    *("data_weights", "max_seq_len", "margin_coefficient"),
    *("max_prompt_seq_len", "max_answer_seq_len", "ptx_coefficient"),
    *("iterations", "num_train_epochs", "prompts_per_rollout", "critic_warmup_iterations"),
}


def dumped(section: Section) -> dict[str, Any]:
    """A section as JSON types: its keys as they are declared, those that the user chose (such as arguments) sorted.

    So the order in which the keys of a configuration are written does not matter.
    """
    return {name: _in_order(getattr(section, name), value) for name, value in section.model_dump(mode="json").items()}


def _in_order(value: Any, json: Any) -> Any:
    """JSON types of a value, with the keys of plain dictionaries sorted."""
    if isinstance(value, Section):
        return {name: _in_order(getattr(value, name), item) for name, item in json.items()}
    if isinstance(json, dict):
        return {key: _in_order(value[key], json[key]) for key in sorted(json)}
    if isinstance(json, list):
        return [_in_order(*pair) for pair in zip(value, json, strict=True)]
    return json


@dataclass(frozen=True)
class Stage:
    """One node of the DAG: what it computes, from what, and how it runs."""

    kind: str
    id: str
    settings: Section
    upstream: Section
    seed: int | None = None
    execution: JobExecution | None = None
    local_files: tuple[str, ...] = ()
    memory: MemorySettings | None = None  # how its memory is planned, where it loads a model
    place: str = ""  # where the configuration defines it, for messages

    @property
    def job(self) -> JobExecution:
        """How the stage runs.

        Raises:
            LookupError: it does not train or evaluate.
        """
        if self.execution is None:
            raise LookupError(f"{self.kind} {self.id} has no `execution`")
        return self.execution

    def spec(self) -> dict[str, Any]:
        """The content of the stage's spec.yaml: what its ID stands for, so it never changes.

        How the stage runs is no part of it: Snakemake would take a changed file for a reason to compute again.
        """
        return {
            "schema_version": 1,
            "stage": self.kind,
            "id": self.id,
            "seed": self.seed,
            "settings": dumped(self.settings),
            "upstream": dumped(self.upstream),
        }


@dataclass(frozen=True)
class Run:
    """One experiment with one seed at one point of its sweep; `stages` maps stage kind to stage ID."""

    experiment: str
    point: dict[str, Any]
    seed: int
    stages: dict[str, str]
    samples: int  # answers shown in the sample table


@dataclass
class Plan:
    """All runs of a configuration and the stages they share."""

    runs: list[Run] = field(default_factory=list)
    stages: dict[tuple[str, str], Stage] = field(default_factory=dict)
    requirements: dict[str, list[Requirement]] = field(default_factory=dict)  # model ID -> what is asked of it

    def add(self, stage: Stage) -> str:
        """Add a stage unless it is there already; returns its ID."""
        self.stages.setdefault((stage.kind, stage.id), stage)
        return stage.id

    def require(self, model: str, requirements: list[Requirement]) -> None:
        """Note what an experiment asks of a model."""
        known = self.requirements.setdefault(model, [])
        known += [requirement for requirement in requirements if requirement not in known]

    def of_same_runs(self, kind: str, id: str) -> list[Stage]:
        """The training stages of all runs of a stage; of those that read the same rows in the same way, the first."""
        found: dict[str, Stage] = {}
        for run in self.runs:
            if run.stages.get(kind) == id:
                for phase in (phase for phase in PHASES if phase in run.stages):
                    stage = self.stages[phase, run.stages[phase]]
                    limits = {key: value for key, value in dumped(stage.settings).items() if key in ROW_LIMITS}
                    data = [getattr(stage.upstream, role) for role in ("tokens", "split")]
                    found.setdefault(json.dumps([phase, limits, data]), stage)
        return list(found.values())

    def products(self) -> list[str]:
        """Files that say that all is made: of every experiment, and of every model on the way there.

        Snakemake does not miss a file that only finished stages read, so those of models are asked for too: one that
        was damaged and discarded is made again.
        """
        experiments = dict.fromkeys(f"results/experiments/{run.experiment}/index.md" for run in self.runs)
        models = [RESULTS[kind].format(id) for kind, id in self.stages if kind in ("model", *PHASES)]
        return [*experiments, *models]

    def results(self) -> list[str]:
        """One file or folder of everything that the workflow makes on its way to the products."""
        made = [RESULTS[kind].format(id) for kind, id in self.stages if kind in RESULTS]
        specifications = [f"results/{kind}/{id}/spec.yaml" for kind, id in self.stages if kind != "tokens"]
        plans = [f"results/{kind}/{id}/memory_plan.json" for kind, id in self.stages if kind in PLANNED]
        checks = [f"results/check_rows/{kind}/{id}/rows.json" for kind, id in self.stages if kind in PHASES[:2]]
        return [*specifications, *made, *plans, *checks]

    def runs_text(self, experiment: str) -> str:
        """Content of an experiment's runs.json."""
        runs = [run for run in self.runs if run.experiment == experiment]
        return runs_text(ExperimentRun(run.point, run.seed, run.stages) for run in runs)

    def of_kind(self, kind: str) -> list[Stage]:
        """The stages of one kind, in the order in which they were resolved."""
        return [stage for (stage_kind, _), stage in self.stages.items() if stage_kind == kind]
