"""An edit of a user's function changes the ID of what depends on it, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config import Fingerprints, Plan, resolve
from rlhf.config.user_code import function_content
from rlhf.errors import UserError
from tests.project import tiny_config

MODULE = """
import json
import helpers.words as words
from helpers import tables


def rows(count):
    import later
    yield from ({"prompt": words.prompt(), "chosen": "a", "rejected": "b"} for _ in range(count))


def judge(prompt, answer, finished):
    return 1.0
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a user's modules, on PYTHONPATH as "."."""
    files = {
        "mine.py": MODULE,
        "helpers/__init__.py": "",
        "helpers/words.py": "from . import letters\nfrom .deep.below import x\n",
        "helpers/letters.py": "A = 1\n",
        "helpers/tables.py": "import numpy\n",
        "helpers/unused.py": "",
        "helpers/deep/below.py": "from ..letters import A\nx = 1\n",
        "later.py": "",
        "other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    return tmp_path


@pytest.mark.parametrize(
    "file",
    ["mine.py", "helpers/__init__.py", "helpers/words.py", "helpers/letters.py", "helpers/deep/below.py", "later.py"],
)
def test_an_edit_of_the_module_or_what_it_imports_is_seen(home: Path, file: str) -> None:
    before = function_content("mine:rows", "key")
    assert before is not None
    (home / file).write_text((home / file).read_text() + "\nY = 2\n")
    assert function_content("mine:rows", "key") != before


@pytest.mark.parametrize("file", ["helpers/unused.py", "other.py"])
def test_an_edit_of_another_file_is_not(home: Path, file: str) -> None:
    before = function_content("mine:rows", "key")
    (home / file).write_text("Y = 2\n")
    assert function_content("mine:rows", "key") == before


def test_the_place_and_the_time_of_files_do_not_count(home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before = function_content("mine:rows", "key")
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("mine.py", "helpers", "later.py"):
        (home / name).rename(moved / name)
    monkeypatch.setenv("PYTHONPATH", f"nowhere:{moved}")
    assert function_content("mine:rows", "key") == before


def test_nothing_is_run(home: Path) -> None:
    (home / "mine.py").write_text("raise RuntimeError\n")
    assert function_content("mine:rows", "key")


def test_a_syntax_error_is_left_to_the_import(home: Path) -> None:
    (home / "mine.py").write_text("def rows(:\n")
    assert function_content("mine:rows", "key")


def test_the_library_and_python_itself_are_not_read(home: Path) -> None:
    assert function_content("rlhf.data.reviews:generate_pairs", "key") is None
    (home / "mine.py").write_text("import numpy, json, rlhf.data.reviews\n")
    alone = function_content("mine:rows", "key")
    (home / "mine.py").write_text("import numpy, json, rlhf.data.reviews\n")
    assert function_content("mine:rows", "key") == alone
    assert function_content("json.decoder:JSONDecoder", "key") != function_content("json.encoder:JSONEncoder", "key")


def test_a_missing_module_is_said_with_where_it_was_looked_for(home: Path) -> None:
    with pytest.raises(UserError, match=r"datasets\.d\.source\.generator: there is no module 'absent'.*PYTHONPATH"):
        function_content("absent:rows", "datasets.d.source.generator")


def resolved(config: dict[str, Any]) -> Plan:
    return resolve(config, Fingerprints("fingerprints.json").of)


def ids(config: dict[str, Any]) -> dict[str, str]:
    return resolved(config).runs[0].stages


def mine(**source: Any) -> dict[str, Any]:
    config = tiny_config()
    config["datasets"]["reviews"] = {
        "source": {"generator": "mine:rows", "arguments": {"count": 9}, **source},
        "gold_reward": "gold:judge",
    }
    return config


@pytest.fixture
def gold(home: Path) -> Path:
    (home / "gold.py").write_text("def judge(prompt, answer, finished):\n    return 1.0\n")
    return home / "gold.py"


def test_a_generator_is_part_of_the_dataset_and_all_that_follows(home: Path, gold: Path) -> None:
    before = ids(mine())
    (home / "mine.py").write_text(MODULE.replace("9", "8") + "# edited\n")
    after = ids(mine())
    assert all(before[kind] != after[kind] for kind in before)


def test_a_gold_reward_is_part_of_what_reports_it(home: Path, gold: Path) -> None:
    before = ids(mine())
    gold.write_text(gold.read_text().replace("1.0", "2.0"))
    after = ids(mine())
    changed = {kind for kind in before if before[kind] != after[kind]}
    assert changed == {"ppo", "evaluate_reward", "baseline", "evaluate_ppo"}


def test_functions_of_the_library_leave_ids_as_they_were(home: Path) -> None:
    for stage in resolved(tiny_config()).stages.values():
        settings = stage.spec()["settings"]
        assert "content" not in settings or stage.kind == "model"
        assert "gold_content" not in settings


def test_declared_files_are_part_of_the_id(home: Path, gold: Path) -> None:
    (home / "words.txt").write_text("a b c")
    (home / "rules.txt").write_text("1")
    config = mine(reads=["words.txt"])
    config["datasets"]["reviews"]["gold_reward_reads"] = ["rules.txt"]
    before = ids(config)
    assert before["dataset"] != ids(mine())["dataset"]
    (home / "rules.txt").write_text("2")
    after = ids(config)
    assert before["dataset"] == after["dataset"]
    assert before["ppo"] != after["ppo"]
    (home / "words.txt").write_text("a b d")
    assert ids(config)["dataset"] != after["dataset"]
    inputs = [stage.local_files for stage in resolved(config).of_kind("dataset")]
    assert inputs == [("words.txt",)]


def test_a_declaration_without_its_function_is_refused(home: Path) -> None:
    (home / "pairs.jsonl").write_text("{}")
    config = tiny_config()
    config["datasets"]["reviews"]["source"] = {"path": "pairs.jsonl", "reads": ["pairs.jsonl"]}
    with pytest.raises(UserError, match=r"reads has no effect on a source with `path`"):
        ids(config)
    config = tiny_config()
    del config["datasets"]["reviews"]["gold_reward"]
    config["datasets"]["reviews"]["gold_reward_reads"] = ["pairs.jsonl"]
    with pytest.raises(UserError, match=r"gold_reward_reads: it belongs to gold_reward"):
        ids(config)
