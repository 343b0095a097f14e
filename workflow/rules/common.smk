"""The plan of stages that the configuration asks for, and what rules need to know of it."""

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from rlhf.config import (
    EVALUATIONS,
    PHASES,
    PLANNED,
    RULES,
    Fingerprints,
    Plan,
    Stage,
    accept_finished,
    check_cluster,
    closing_message,
    cluster_resources,
    dumped,
    failure_message,
    planned_execution,
    planned_memory,
    plans_message,
    read_facts,
    read_plan,
    remove_recorded_states,
    require,
    require_distinct_keys,
    require_no_jobs,
    resolve,
    stand_before_slurm,
    with_types,
)
from rlhf.errors import UserError

# Beside the library, wherever the rules were read from: a Snakefile that uses them as a module lies elsewhere.
HOME = Path(inspect.getfile(Plan)).parents[2]
SCRIPTS = str(HOME / "scripts")
# Snakemake (9.27) prints a module's commands with the names of the Snakefile that uses it.
for modifier in workflow.modifier_stack:
    modifier.globals.setdefault("SCRIPTS", SCRIPTS)

# Only the two cache rules may reach a hub, where the user has not forbidden it to all. Progress bars are for terminals;
# logs get a line every ten seconds.
shell.prefix(
    'export RLHF_OFFLINE="${{HF_HUB_OFFLINE:-0}}" HF_HUB_OFFLINE=1; '
    "export HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1"
    " HF_DATASETS_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false; "
)


include: "cluster.smk"


def check_cached_models(plan: Plan) -> None:
    """Check what experiments ask of the models that are cached already; a new one is checked when it is cached."""
    for id, requirements in plan.requirements.items():
        manifest = Path(f"resources/models/{id}/manifest.json")
        if manifest.exists():
            require(read_facts(manifest), requirements, plan.stages["model", id].place)


def make_plan() -> Plan:
    """Resolve the configuration; a user's mistake is one message without a traceback."""
    fingerprints = Fingerprints("resources/fingerprints.json")
    try:
        require_distinct_keys(workflow.configfiles)
        settings = with_types(config, workflow.config_settings.config)
        plan = resolve(settings, fingerprints.of)
        check_cached_models(plan)
        if workflow.is_main_process:
            check_cluster(plan, submission)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    fingerprints.save()
    validate(settings, str(HOME / "schemas/config.schema.json"), set_default=False)
    return plan


if workflow.is_main_process:  # a submitted job must not hash what another one has just finished
    for folder in accept_finished():
        print(f"{folder}: was finished after its Snakemake had ended; accepted", file=sys.stderr)

PLAN = make_plan()


wildcard_constraints:
    id="[a-z0-9][a-z0-9-]*-[0-9a-f]{8}",
    kind="[a-z_]+",
    name="[A-Za-z0-9][A-Za-z0-9_.-]*",


def stage(kind: str, id: str) -> Stage:
    """A stage of the plan."""
    if (kind, id) not in PLAN.stages:
        raise WorkflowError(f"no experiment of this configuration has a stage {kind} {id}")
    return PLAN.stages[kind, id]


def upstream_ids(kind: str, role: str, wildcards) -> list[str]:
    """IDs of the stages that have a role for this one; none where it does without."""
    ids = getattr(stage(kind, wildcards.id).upstream, role) or []
    return [ids] if isinstance(ids, str) else ids


def upstream(kind: str, role: str, pattern: str) -> Callable:
    """Input function: `pattern` filled with the ID(s) of the stage that has a role for this one.

    Age is no reason to compute again (`ancient`): the ID says what the input is, and a stage that was damaged and made
    anew is what it was.
    """

    def paths(wildcards) -> list[str]:
        return [pattern.format(id) for id in upstream_ids(kind, role, wildcards)]

    return ancient(paths)


def spec_text(wildcards) -> str:
    """A stage's specification as YAML."""
    return yaml.safe_dump(stage(wildcards.kind, wildcards.id).spec(), sort_keys=False, allow_unicode=True)


def runs_text(wildcards) -> str:
    """An experiment's runs as JSON: sweep point, seed, stage IDs."""
    return PLAN.runs_text(wildcards.name)


def shown_samples(wildcards) -> int:
    """Answers shown in an experiment's sample table."""
    return next(run.samples for run in PLAN.runs if run.experiment == wildcards.name)


def base_models(wildcards) -> list[str]:
    """Input function: the models from which those that a stage loads start in the end, in the order of their roles."""

    def base(kind: str, id: str) -> str:
        return id if kind == "model" else base(*stage(kind, id).upstream.start)

    loaded = stage(wildcards.kind, wildcards.id).upstream.starts
    return [f"resources/models/{base(*start)}/model" for start in loaded]


def upstream_specs(wildcards) -> list[str]:
    """Input function: the specifications of all training stages from which the models of a stage start."""

    def before(of: Stage) -> list[Stage]:
        found = [stage(kind, id) for kind, id in of.upstream.starts if kind != "model"]
        return found + [earlier for one in found for earlier in before(one)]

    stages = dict.fromkeys((one.kind, one.id) for one in before(stage(wildcards.kind, wildcards.id)))
    return [f"results/{kind}/{id}/spec.yaml" for kind, id in stages]


def same_runs(pattern: str) -> Callable:
    """Input function: `pattern` for the training stages of all runs that a stage is part of."""
    return lambda wildcards: [
        pattern.format(kind=one.kind, id=one.id) for one in PLAN.of_same_runs(wildcards.kind, wildcards.id)
    ]


def data_of_same_runs(role: str, pattern: str) -> Callable:
    """Input function: `pattern` for what has a role, `tokens` or `split`, for these stages."""
    return lambda wildcards: list(
        dict.fromkeys(
            pattern.format(id)
            for one in PLAN.of_same_runs(wildcards.kind, wildcards.id)
            for id in getattr(one.upstream, role)
        )
    )


def results_of(file: str, *kinds: str, folder: str = "{kind}") -> Callable:
    """Input function: a file of all stages of some kinds in an experiment, below results/`folder`."""

    def paths(wildcards) -> list[str]:
        runs = [run for run in PLAN.runs if run.experiment == wildcards.name]
        return [
            f"results/{folder.format(kind=kind)}/{id}/{file}"
            for kind in kinds
            for id in dict.fromkeys(run.stages[kind] for run in runs if kind in run.stages)
        ]

    return paths
