"""What a training stage writes beside its model: the manifest, phases of memory, and speeds of a known clock."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import UserError
from rlhf.ppo.mix import MixedBatch, PretrainingMix
from rlhf.runtime.progress import StageMetrics
from rlhf.training import reward, sft
from tests.oracle.conftest import Start, starts  # noqa: F401  (a fixture)
from tests.oracle.stages import Outcome, run

ELAPSED = 4.0  # seconds, whatever the clock says
TRAINING: dict[str, Any] = {"max_seq_len": 32, "dtype": "fp32", "global_batch_size": 4, "num_train_epochs": 1}
PPO: dict[str, Any] = {
    "iterations": 2,
    "critic_warmup_iterations": 1,
    "prompts_per_rollout": 4,
    "max_prompt_seq_len": 16,
    "max_answer_seq_len": 6,
    "temperature": 0.8,
    "dtype": "fp32",
    "actor": {"num_warmup_steps": 0},
    "critic": {"num_warmup_steps": 0},
}


@pytest.fixture(scope="module")
def outcomes(starts: dict[str, Start], tmp_path_factory: pytest.TempPathFactory, group: None) -> dict[str, Outcome]:  # noqa: F811
    """Kind -> a stage of that kind that has run."""
    start, folder = starts["gpt2"], tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageMetrics, "elapsed", ELAPSED)
        return {
            "sft": run("sft", folder / "sft", [start.data], {"sft": TRAINING}, model=start.policy),
            "reward": run("reward", folder / "reward", [start.data], {"reward": TRAINING}, model=start.policy),
            "ppo": run("ppo", folder / "ppo", [start.data], {"ppo": PPO}, sft=start.policy, reward=start.reward),
        }


def record(outcome: Outcome, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outcome.output / name).read_text())
    return found


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_the_manifest_says_what_was_read_and_done(kind: str, outcomes: dict[str, Outcome], starts) -> None:  # noqa: F811
    outcome, data = outcomes[kind], starts["gpt2"].data
    manifest, steps = record(outcome, "manifest.json"), len(outcome.lines("train"))
    assert manifest["inputs"] == {
        "tokenizer": json.loads((data.tokens / "tokens.json").read_text())["tokenizer_fingerprint"]
    }
    given = len(data.rows_of(kind))
    rows = {"train": 8} if kind == "ppo" else {"train": given, "eval": len(data.unseen)}  # two rollouts of 4 prompts
    assert manifest["rows"] == rows
    assert (manifest["steps"]["planned"], manifest["steps"]["done"]) == (steps, steps) == (2, 2)
    assert manifest["rows_given"] == given
    if kind != "ppo":
        assert manifest["seen_in_train"] == 0
    limits = {"reward": ("score", 1e-2)}
    delivered = manifest["delivered"]["model"]
    assert (delivered["quantity"], delivered["limit"]) == limits.get(kind, ("log-probability", 1e-3))
    assert delivered["sequences"] == 8
    assert delivered["delivered"] == pytest.approx(delivered["trained"], rel=1e-5)


def test_the_manifest_counts_the_rows_that_were_used(starts, tmp_path: Path, group: None) -> None:  # noqa: F811
    """Beside those that a weight or the number of iterations leaves out; the steps themselves are the witnesses."""
    start, weights = starts["gpt2"], {"data_weights": {"data-0": 0.4}}
    sft = run("sft", tmp_path / "sft", [start.data], weights | {"sft": TRAINING}, model=start.policy)
    given = len(start.data.rows_of("sft"))
    manifest = record(sft, "manifest.json")
    used = {place for batch in sft.witness.batches for place in batch}
    assert (manifest["rows"]["train"], manifest["rows_given"]) == (len(used), given)
    assert len(used) == round(0.4 * given) < given
    assert f"- {len(used)} rows trained on, of {given} that" in (sft.output / "model/README.md").read_text()

    mixed: set[int] = set()
    draw = PretrainingMix.next_batch

    def drawn(mix: PretrainingMix) -> MixedBatch:
        batch = draw(mix)
        mixed.update(int(row) for micro in batch.shares for row in micro.rows[: None if micro.weight else 0])
        return batch

    settings = PPO | {"ptx_coefficient": 1.0, "ptx_rows_per_step": 1, "prompts_per_rollout": 3, "answers_per_prompt": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainingMix, "next_batch", drawn)
        folders = {"sft": start.policy, "reward": start.reward}
        ppo = run("ppo", tmp_path / "ppo", [start.data], {"ppo": settings}, **folders)
    manifest, given = record(ppo, "manifest.json"), len(start.data.rows_of("ppo"))
    prompts = {tuple(prompt) for rollout in ppo.witness.rollouts for prompt in rollout.prompts}
    assert manifest["rows"] == {"train": len(prompts), "mixed": len(mixed)}
    assert (manifest["rows_given"], manifest["rows_per_epoch"], manifest["answers"]) == (given, given, 2 * 3 * 2)
    assert len(prompts) == 6 < given
    card = (ppo.output / "model/README.md").read_text()
    assert f"- 6 prompts trained on, of {given} that it was given, with 12 sampled answers" in card


def test_the_manifest_says_how_answers_were_sampled(outcomes: dict[str, Outcome]) -> None:
    found = record(outcomes["ppo"], "manifest.json")["sampling"]
    assert found == {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "max_new_tokens": 6}


PHASES = {
    "sft": ["load", "train", "save"],
    "reward": ["load", "train", "normalise", "save"],
    "ppo": ["load", *["generate", "score", "train"] * 2, "save"],
}


@pytest.mark.parametrize("kind", PHASES)
def test_memory_is_told_by_phase(kind: str, outcomes: dict[str, Outcome]) -> None:
    (process,) = record(outcomes[kind], "memory.json")["processes"]
    assert [phase["name"] for phase in process["phases"]] == list(dict.fromkeys(PHASES[kind]))


@pytest.mark.parametrize("kind", PHASES)
def test_speed_is_tokens_so_far_over_time_so_far(kind: str, outcomes: dict[str, Outcome]) -> None:
    lines = outcomes[kind].lines("train")
    assert [line["step"] for line in lines] == [1, 2]
    assert 0 < lines[0]["tokens"] < lines[1]["tokens"]
    assert [line["tokens_per_second"] for line in lines] == [line["tokens"] / ELAPSED for line in lines]


def test_the_policy_has_a_learning_rate_where_it_trains(outcomes: dict[str, Outcome]) -> None:
    rates = [{name for name in line if name.endswith("learning_rate")} for line in outcomes["ppo"].lines("train")]
    assert rates == [{"critic_learning_rate"}, {"learning_rate", "critic_learning_rate"}]


@pytest.mark.parametrize("kind", ["sft", "reward", "actor", "critic"])
def test_adapters_of_no_layer_are_refused_by_the_key_of_their_settings(
    kind: str,
    starts: dict[str, Start],  # noqa: F811
    tmp_path: Path,
    group: None,
) -> None:
    start, adapters = starts["gpt2"], {"lora_dim": 2, "lora_module_name": "no such layer"}
    if kind in ("sft", "reward"):
        key, stage = kind, kind
        experiment, folders = {kind: TRAINING | adapters}, {"model": start.policy}
    else:
        key, stage = f"ppo.{kind}", "ppo"
        experiment, folders = {"ppo": PPO | {kind: PPO[kind] | adapters}}, {"sft": start.policy, "reward": start.reward}
    with pytest.raises(UserError, match=rf"^{re.escape(key)}\.lora_module_name: 'no such layer' matches no linear"):
        run(stage, tmp_path / "out", [start.data], experiment, **folders)


@pytest.mark.parametrize(("kind", "key"), [("sft", "packing"), ("reward", "share_prompt")])
def test_a_family_is_asked_about_the_longest_sequence_and_refused_by_the_key(
    kind: str,
    key: str,
    starts: dict[str, Start],  # noqa: F811
    tmp_path: Path,
    group: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows of attention may be wider than short sequences, and narrower than the longest."""
    asked: list[int] = []
    module = {"sft": sft, "reward": reward}[kind]
    monkeypatch.setattr(module, "supports_segments", lambda model, longest: asked.append(longest) or False)
    start, settings = starts["gpt2"], TRAINING | {"execution": {key: True}}
    with pytest.raises(UserError, match=rf"{kind}\.execution\.{key}: gpt2 cannot"):
        run(kind, tmp_path / "out", [start.data], {kind: settings}, model=start.policy)
    assert asked == [TRAINING["max_seq_len"]]
