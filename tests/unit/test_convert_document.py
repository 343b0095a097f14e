"""docs/from-deepspeed-chat.md: made from the tables of flags, complete, and true to the configuration."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from rlhf.config import Configuration
from rlhf.config.compatibility import PRESETS
from rlhf.config.schema import ExperimentSettings
from rlhf.convert.documentation import DOCUMENT, FLAG_TABLES, TABLES, with_tables
from rlhf.convert.flags import CONSTANTS, Flag
from rlhf.convert.programs import PROGRAMS

DOCUMENTED = DOCUMENT.read_text(encoding="utf-8")
ROWS = [(name, flag) for name, flags in TABLES.items() for flag in flags]


def test_the_tables_are_the_generated_ones() -> None:
    assert with_tables(DOCUMENTED) == DOCUMENTED, "run `make docs`"
    assert set(re.findall(r"<!-- table (\w+) -->", DOCUMENTED)) == TABLES.keys()


def test_every_flag_has_a_row() -> None:
    assert [len(FLAG_TABLES[phase]) for phase in PROGRAMS] == [32, 32, 60]
    for name, flags in FLAG_TABLES.items():
        assert len({flag.name for flag in flags}) == len(flags), name
        section = DOCUMENTED.split(f"<!-- table {name} -->")[1].split("<!-- end -->")[0]
        for flag in flags:
            assert f"| `--{flag.name}` |" in section, f"{name}: {flag.name}"


def test_no_cell_is_empty() -> None:
    for line in DOCUMENTED.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) > 1 and all(cells), line


def fields_below(annotation: Any) -> Any:
    """The section, or the type of a mapping's values, in an annotation; None where there is neither."""
    for item in (annotation, *get_args(annotation)):
        if isinstance(item, type) and issubclass(item, BaseModel):
            return item
    return None


def exists(key: str) -> bool:
    parts = key.split(".")
    section: Any = Configuration if parts[0] in ("datasets", "models") else ExperimentSettings
    for part in parts:
        if section is None:
            return False
        if part == "NAME":  # any name: the section of the table's values is found already
            continue
        if part not in section.model_fields:
            return False
        section = fields_below(section.model_fields[part].annotation)
    return True


def test_keys_are_found_where_they_exist_only() -> None:
    assert exists("ppo.actor.learning_rate") and exists("models.NAME.source.hub") and exists("datasets.NAME.data_split")
    assert not exists("ppo.actor.kl_coefficient") and not exists("sft.dtype.x") and not exists("models.NAME.zzz")


@pytest.mark.parametrize("key", sorted({key for _, flag in ROWS for key in flag.keys}))
def test_every_key_that_is_named_exists(key: str) -> None:
    assert exists(key)


def test_every_key_in_the_text_exists() -> None:
    named = re.findall(r"`((?:sft|reward|ppo|evaluation)\.[a-z0-9_.]+)", DOCUMENTED)
    assert len(named) > 100
    assert [key for key in named if not exists(key.rstrip("."))] == []


def test_values_are_copied_to_keys_only() -> None:
    for _, flag in ROWS:
        assert flag.note
        assert flag.keys or flag.use != "copy" or flag in CONSTANTS, flag.name


@pytest.mark.parametrize("flag", [flag for flag in CONSTANTS if "Set by" in flag.note], ids=lambda flag: flag.name)
def test_constants_are_those_of_the_preset(flag: Flag) -> None:
    for key in flag.keys if flag.name != "KL estimator and place" else flag.keys[:1]:
        value: Any = PRESETS["deepspeed_chat"]
        for part in key.split("."):
            value = value[part]
        assert value == flag.default
