"""How an evaluation runs does not change what it finds: processes, partitions, kills. One model is held at a time."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.config.expand import deep_merge
from rlhf.errors import UserError
from rlhf.evaluation import frame
from rlhf.evaluation.frame import Evaluation
from rlhf.models.scores import TokenScorer
from rlhf.ppo import rollout, scoring
from rlhf.training import job
from tests.oracle.stages import Outcome, call, command, run, script_file, words_of
from tests.oracle.test_evaluation import EXPERIMENT, Trained, baseline, measured, trained  # noqa: F401  (fixtures)
from tests.snakemake import run_processes

ROOT = Path(__file__).parents[2]
KINDS = ("evaluate_sft", "evaluate_reward", "baseline", "evaluate_ppo")
# ZeRO-3 leaves small parameters whole: without this it would cut none of a tiny model.
CUT_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
RUNS: dict[str, dict[str, Any]] = {"whole": {}, "partitioned": {"zero_stage": 3, "deepspeed_config": CUT_ALL}}


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it, and nothing is tidied up."""


def folders(kind: str, models: Trained, before: Outcome) -> dict[str, Path]:
    """What the script of an evaluation is given."""
    each = {"evaluate_sft": {"model": models.sft}, "evaluate_reward": {"model": models.reward}}
    own = {"sft": models.sft, "reward": models.reward}
    each["baseline"] = own
    each["evaluate_ppo"] = own | {"policy": models.policy, "baseline": before.output / "samples.jsonl"}
    return each[kind]


def with_execution(**execution: Any) -> dict[str, Any]:
    return deep_merge(EXPERIMENT, {"evaluation": {"execution": execution}})


@pytest.fixture(scope="module")
def alone(trained: Trained, baseline: Outcome, tmp_path_factory: pytest.TempPathFactory, group: None) -> dict[str, Any]:  # noqa: F811
    """Each evaluation by one process, from the beginning to the end."""
    root = tmp_path_factory.mktemp("alone")
    return {
        kind: baseline
        if kind == "baseline"
        else run(kind, root / kind, trained.data, EXPERIMENT, **folders(kind, trained, baseline))
        for kind in KINDS
    }


def require_same(found: Outcome, expected: Outcome, exactly: bool) -> None:
    """The same numbers and answers; up to rounding where weights are gathered in another order."""
    tolerance = {"rel": 0.0, "abs": 0.0} if exactly else {"rel": 1e-5, "abs": 1e-5}
    require_near(measured(found), measured(expected), tolerance)
    if (expected.output / "samples.jsonl").exists():
        require_near(found.jsonl("samples.jsonl"), expected.jsonl("samples.jsonl"), tolerance)


def require_near(found: Any, expected: Any, tolerance: dict[str, float]) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            require_near(found[key], value, tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            require_near(one, other, tolerance)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, **tolerance)
    else:
        assert found == expected


def test_two_processes_find_what_one_finds(
    trained: Trained,  # noqa: F811
    alone: dict[str, Outcome],
    tmp_path: Path,
) -> None:
    """With whole models the same micro-batches, so the same bits; partitioned, the same up to rounding."""
    commands, outcomes = [], {}
    for name, execution in RUNS.items():
        experiment = with_execution(gpus_per_node=2, **execution)
        for kind in KINDS:
            given = folders(kind, trained, alone["baseline"])
            output = tmp_path / name / kind
            script, arguments = command(kind, output, trained.data, experiment, **given)
            commands.append([script_file(script), *words_of(arguments)])
            outcomes[name, kind] = Outcome(output, {}, alone[kind].witness)
    listing = tmp_path / "commands.json"
    listing.write_text(json.dumps(commands))
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "workflow"))
    run_processes(
        2, ROOT / "tests/pipeline/run_scripts.py", listing, timeout=600, PYTHONPATH=path, DS_ACCELERATOR="cpu"
    )
    for (name, kind), outcome in outcomes.items():
        require_same(outcome, alone[kind], exactly=name == "whole")
        memory = json.loads((outcome.output / "memory.json").read_text())
        assert [process["rank"] for process in memory["processes"]] == [0, 1]
        assert {"load", "score"} <= {phase["name"] for phase in memory["processes"][1]["phases"]}


def at_call(patch: pytest.MonkeyPatch, place: Any, name: str, number: int, action: Callable[[], None]) -> None:
    """Do something before the n-th call of a function."""
    function, calls = getattr(place, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    patch.setattr(place, name, counted)


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(
    ("kind", "place", "name", "number"),
    [
        ("baseline", rollout, "sample_answers", 5),
        ("baseline", TokenScorer, "forward", 3),
        ("evaluate_ppo", rollout, "sample_answers", 2),
        ("evaluate_ppo", scoring, "answer_logits", 2),  # of the policy
        ("evaluate_ppo", scoring, "answer_logits", 6),  # of the reference
        ("evaluate_ppo", frame, "write_evaluation", 1),
        ("evaluate_reward", TokenScorer, "forward", 3),
    ],
)
def test_a_killed_evaluation_goes_on_at_the_micro_batch_where_it_was(
    trained: Trained,  # noqa: F811
    alone: dict[str, Outcome],
    tmp_path: Path,
    kind: str,
    place: Any,
    name: str,
    number: int,
) -> None:
    output, given = tmp_path / "out", folders(kind, trained, alone["baseline"])
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, place, name, number, kill)
        with pytest.raises(Killed):
            run(kind, output, trained.data, EXPERIMENT, **given)
    assert not (output / "evaluation.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        computed: list[int] = []
        patch.setattr(place, name, counting(getattr(place, name), computed))
        again = run(kind, output, trained.data, EXPERIMENT, **given)
    with pytest.MonkeyPatch.context() as patch:
        whole: list[int] = []
        patch.setattr(place, name, counting(getattr(place, name), whole))
        run(kind, tmp_path / "whole", trained.data, EXPERIMENT, **given)
    assert len(computed) == len(whole) - (number - 1)
    require_same(again, alone[kind], exactly=True)
    assert not (output / "state").exists()


def counting(function: Any, calls: list[int]) -> Any:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    return counted


def test_a_cut_line_and_the_work_of_other_code_are_not_used(
    trained: Trained,  # noqa: F811
    alone: dict[str, Outcome],
    tmp_path: Path,
) -> None:
    output, given = tmp_path / "out", folders("baseline", trained, alone["baseline"])
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, rollout, "sample_answers", 4, kill)
        with pytest.raises(Killed):
            run("baseline", output, trained.data, EXPERIMENT, **given)
    (file,) = (output / "state/found").glob("*/answers/*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    file.write_text(lines[0] + lines[1].replace("true", "false") + lines[2][:-9])  # a changed one, and a cut one
    for code, left in (("", 1), ("another code", 0)):
        with pytest.MonkeyPatch.context() as patch:
            if code:
                patch.setattr(frame, "code_hash", lambda code=code: code)
            calls: list[int] = []
            patch.setattr(rollout, "sample_answers", counting(rollout.sample_answers, calls))
            at_call(patch, frame, "write_evaluation", 1, kill)
            with pytest.raises(Killed):
                run("baseline", output, trained.data, EXPERIMENT, **given)
        batches = -(-24 * 5 // 7)
        assert len(calls) == batches - left
    require_same(run("baseline", output, trained.data, EXPERIMENT, **given), alone["baseline"], exactly=True)


def test_an_evaluation_that_is_asked_to_stop_says_so_and_goes_on_later(
    trained: Trained,  # noqa: F811
    alone: dict[str, Outcome],
    tmp_path: Path,
) -> None:
    output, given = tmp_path / "out", folders("baseline", trained, alone["baseline"])
    with pytest.MonkeyPatch.context() as patch:
        stop = stopping(patch)
        at_call(patch, rollout, "sample_answers", 3, stop)
        with pytest.raises(Exception, match="SIGTERM: what was found so far is kept; the same command goes on"):
            run("baseline", output, trained.data, EXPERIMENT, **given)
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "sample_answers", counting(rollout.sample_answers, calls))
        require_same(run("baseline", output, trained.data, EXPERIMENT, **given), alone["baseline"], exactly=True)
    assert len(calls) == -(-24 * 5 // 7) - 3  # the batch in which it was asked was finished


def stopping(patch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Asks the evaluation that runs to stop, as SIGTERM does."""
    running: list[Any] = []
    enter = Evaluation.__enter__

    def entered(evaluation: Any) -> Any:
        running.append(evaluation)
        return enter(evaluation)

    patch.setattr(Evaluation, "__enter__", entered)
    return lambda: setattr(running[-1].interruption, "reason", "SIGTERM")


@pytest.mark.parametrize("execution", RUNS.values(), ids=list(RUNS))
@pytest.mark.parametrize("kind", ["baseline", "evaluate_ppo"])
def test_one_model_is_held_at_a_time(
    trained: Trained,  # noqa: F811
    alone: dict[str, Outcome],
    tmp_path: Path,
    kind: str,
    execution: dict[str, Any],
) -> None:
    """When one is loaded, nothing refers any more to a weight of the one before."""
    alive: list[list[str]] = []
    known: list[tuple[str, weakref.ref[Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_policy", "load_reward"):
            patch.setattr(frame, name, watching(getattr(frame, name), alive, known))
        given = folders(kind, trained, alone["baseline"])
        run(kind, tmp_path / "out", trained.data, with_execution(**execution), **given)
    assert alive == [[]] * (2 if kind == "baseline" else 3)


def watching(load: Any, alive: list[list[str]], known: list[tuple[str, weakref.ref[Any]]]) -> Any:
    def watched(folder: Path, *args: Any, **kwargs: Any) -> Any:
        alive.append([name for name, reference in known if reference() is not None])
        model = load(folder, *args, **kwargs)
        known.extend((f"{folder.name} {name}", weakref.ref(weight)) for name, weight in model.named_parameters())
        known.append((folder.name, weakref.ref(model)))
        return model

    return watched


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_models_compute_in_the_precision_of_the_evaluation(
    trained: Trained,  # noqa: F811
    alone: dict[str, Outcome],
    tmp_path: Path,
    dtype: str,
) -> None:
    """In bf16 the answers are other draws, and scores of equal texts differ from those in fp32 by rounding."""
    seen: set[torch.dtype] = set()

    def noted(load: Any) -> Any:
        def loaded(*args: Any, **kwargs: Any) -> Any:
            model = load(*args, **kwargs)
            seen.update(weight.dtype for weight in model.parameters())
            return model

        return loaded

    experiment = deep_merge(EXPERIMENT, {"evaluation": {"dtype": None}, "ppo": {"dtype": dtype}})
    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_policy", "load_reward"):
            patch.setattr(frame, name, noted(getattr(frame, name)))
        given = folders("baseline", trained, alone["baseline"])
        found = run("baseline", tmp_path / "out", trained.data, experiment, **given)
    assert seen == {torch.bfloat16 if dtype == "bf16" else torch.float32}
    scores = {answer["text"]: answer["score"] for row in found.jsonl("samples.jsonl") for answer in row["answers"]}
    before = alone["baseline"].jsonl("samples.jsonl")
    exact = {answer["text"]: answer["score"] for row in before for answer in row["answers"]}
    common = scores.keys() & exact.keys()
    assert len(common) > 10
    assert np.allclose(*([table[text] for text in common] for table in (scores, exact)), atol=0.2)
    assert (scores == exact) == (dtype == "fp32")


def test_a_precision_that_the_device_lacks_is_refused(trained: Trained, tmp_path: Path, group: None) -> None:  # noqa: F811
    """Before a model is loaded."""
    script, arguments = command(
        "evaluate_sft",
        tmp_path / "out",
        trained.data,
        deep_merge(with_execution(gpus_per_node=1), {"evaluation": {"dtype": "fp16"}}),
        model=trained.sft,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "require_device", lambda gpus: None)  # as with a GPU that does not know it
        with pytest.raises(UserError, match="dtype: fp16 does not work on this device"):
            call(script, **arguments)
