"""Limits of all stages of a run are tried on their rows as soon as these are tokenised, in the words of each stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rlhf.config import resolve
from rlhf.config.specification import TRAINED
from rlhf.data.tokens import tokenize
from rlhf.errors import UserError
from rlhf.planning.usable import usable_rows
from tests.conftest import ROOT
from tests.specifications import RESOLVED, UPSTREAM
from tests.unit.conftest import cached_dataset, make_model

# Prompts of 2 and 4 words, chosen answers of 3 and 2 with their EOS, rejected of 2 and 5.
ROWS: list[dict[str, Any]] = [
    {"prompt": "w3 w4", "chosen": " w5 w6", "rejected": [" w7"]},
    {"prompt": "w3 w4 w5 w6", "chosen": " w8", "rejected": [" w9 w10 w11 w12"]},
]
ALL = {"train": 2, "eval": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("usable")
    model = make_model(folder / "model", "gpt2")
    cached_dataset(folder / "dataset", train=ROWS, eval=ROWS)
    tokenize(folder / "dataset", model, folder / "tokens/t-00000000")
    rows = folder / "split/x-00000000/rows"
    rows.mkdir(parents=True)
    for split in ("train", "eval"):
        for phase in TRAINED:
            np.save(rows / f"{split}.{phase}.npy", np.arange(2))
    return folder


def content(kind: str, **settings: Any) -> dict[str, Any]:
    upstream = {**UPSTREAM[kind], "tokens": ["t-00000000"], "split": ["x-00000000"]}
    identity = {"schema_version": 1, "stage": kind, "id": f"{kind}-00000000", "seed": 1}
    return {**identity, "settings": {**RESOLVED[kind], **settings}, "upstream": upstream}


def counted(folders: Path, kind: str, **settings: Any) -> dict[str, int]:
    stage = TRAINED[kind].model_validate(content(kind, **settings))
    tokens = {"t-00000000": folders / "tokens/t-00000000"}
    splits = {"x-00000000": folders / "split/x-00000000/rows"}
    return usable_rows([stage], tokens, splits)[f"{kind}-00000000"]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("sft", {"max_seq_len": 6}, ALL),
        ("sft", {"max_seq_len": 5}, {"train": 1, "eval": 1}),
        ("reward", {"max_seq_len": 9}, ALL),
        ("reward", {"max_seq_len": 8}, {"train": 1, "eval": 1}),
        ("ppo", {"max_prompt_seq_len": 4}, ALL),
        ("ppo", {"max_prompt_seq_len": 3}, {"train": 1, "eval": 1}),
        ("ppo", {"max_prompt_seq_len": 4, "max_answer_seq_len": 1, "ptx_coefficient": 0.5}, ALL | {"mixed": 1}),
    ],
)
def test_the_rows_within_the_limits_are_counted(
    folders: Path, kind: str, settings: dict[str, Any], expected: dict[str, int]
) -> None:
    assert counted(folders, kind, **settings) == expected


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("sft", {"max_seq_len": 4}, r"^sft\.max_seq_len: 4 excludes all 2 rows; raise it$"),
        ("reward", {"max_seq_len": 4}, r"^reward\.max_seq_len: 4 excludes all 2 rows; raise it$"),
        ("reward", {"margin_coefficient": 0.5}, "margin_coefficient: 0.5, but no pair of the data has a margin"),
        ("ppo", {"max_prompt_seq_len": 1}, r"^ppo\.max_prompt_seq_len: 1 excludes all 2 rows; raise it$"),
        (
            "ppo",
            {"max_prompt_seq_len": 2, "max_answer_seq_len": 2, "ptx_coefficient": 0.5},
            r"^ppo\.max_prompt_seq_len \+ max_answer_seq_len: 4 excludes all 2 rows; raise it$",
        ),
        ("ppo", {"num_train_epochs": 2, "prompts_per_rollout": 4, "critic_warmup_iterations": 1}, "would never train"),
    ],
)
def test_what_would_leave_nothing_is_refused(folders: Path, kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        counted(folders, kind, **settings)


def test_the_script_checks_all_stages_that_it_is_given(folders: Path, tmp_path: Path) -> None:
    for kind in TRAINED:
        resolved = TRAINED[kind].model_validate(content(kind)).identity()
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(resolved))
    command = [sys.executable, str(ROOT / "workflow/scripts/check_rows.py")]
    command += ["--spec", *(str(tmp_path / f"{kind}.yaml") for kind in TRAINED)]
    command += ["--tokens", str(folders / "tokens/t-00000000"), "--split", str(folders / "split/x-00000000/rows")]
    subprocess.run([*command, "--output", str(tmp_path / "rows.json")], check=True)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written == {"schema_version": 1, "rows": {f"{kind}-00000000": ALL for kind in TRAINED}}


def test_a_sweep_is_checked_once_for_each_set_of_limits() -> None:
    config = {
        "datasets": {"pairs": {"source": {"path": "pairs.jsonl"}}},
        "models": {"big": {"source": {"hub": "org/big"}}},
        "defaults": {"data_path": ["pairs"], "policy": "big", "reward_model": "big", "seeds": [1, 2]},
        "experiments": {
            "demo": {"sweep": {"ppo.kl_coefficient": [0.1, 0.2, 0.3], "ppo.max_prompt_seq_len": [128, 256]}},
            "other": {"ppo": {"max_prompt_seq_len": 64}},
        },
    }
    plan = resolve(config, lambda path, key: path)
    first, second = (stage.id for stage in plan.of_kind("sft"))
    for id in (first, second):
        stages = plan.of_same_runs("sft", id)
        assert [stage.kind for stage in stages] == ["sft", "reward", "ppo", "ppo", "ppo"]
        assert stages[0].id == id and stages[1].seed == stages[0].seed
        assert [stage.settings.max_prompt_seq_len for stage in stages[2:]] == [128, 256, 64]
    assert plan.of_same_runs("reward", stages[1].id) == stages
