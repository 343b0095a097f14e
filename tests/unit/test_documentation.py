"""The generated schema and manual of the configuration."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.utils import validate

from rlhf.config import Configuration
from rlhf.manual import MANUAL, SCHEMA, manual, schema

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = [ROOT / "config/config.yaml", *sorted((ROOT / "config/recipes").glob("*.yaml"))]


def default_config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def sections() -> list[tuple[str, dict[str, Any]]]:
    generated = schema()
    named = [(name, section) for name, section in generated["$defs"].items() if name != "JsonValue"]
    return [("Configuration", generated), *named]


def test_the_schema_is_the_generated_one() -> None:
    assert json.loads(SCHEMA.read_text()) == schema(), "run `make docs`"


def test_the_manual_is_the_generated_one() -> None:
    assert MANUAL.read_text() == manual(), "run `make docs`"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_configurations_satisfy_the_schema_and_stay_as_they_are(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    before = copy.deepcopy(config)
    validate(config, str(SCHEMA), set_default=False)
    assert config == before


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ((), "zzz", 1),
        (("defaults",), "zzz", 1),
        (("defaults", "ppo"), "kl_coeficient", 0.1),
        (("defaults", "ppo", "actor"), "zzz", 1),
        (("datasets", "reviews", "source"), "zzz", 1),
        (("defaults", "sft"), "learning_rate", "1e-5"),
        (("defaults", "sft"), "num_train_epochs", 0),
        (("experiments",), "../x", {}),
    ],
)
def test_mistakes_fail_the_schema(section: tuple[str, ...], key: str, value: Any) -> None:
    config = default_config()
    target = config
    for part in section:
        target = target[part]
    target[key] = value
    with pytest.raises(WorkflowError):
        validate(config, str(SCHEMA), set_default=False)


def test_every_section_refuses_unknown_keys() -> None:
    assert {name for name, section in sections() if section.get("additionalProperties") is not False} == set()


def test_every_key_has_a_description_and_a_line_in_the_manual() -> None:
    text = manual()
    for name, section in sections():
        for key, field in section["properties"].items():
            assert field.get("description"), f"{name}.{key}"
            assert f"{key}`" in text or f"`{key}.NAME`" in text, f"{name}.{key}"


def test_dotted_keys_of_the_manual_exist() -> None:
    text = manual()
    for key in ("ppo.kl_coefficient", "ppo.actor.learning_rate", "sft.execution.zero_stage", "source.hub", "seeds"):
        assert f"| `{key}` |" in text


def test_the_manual_shows_limits_and_defaults() -> None:
    line = next(line for line in manual().splitlines() if line.startswith("| `ppo.gamma` |"))
    assert line == "| `ppo.gamma` | Discount. | number >= 0 <= 1 | `1.0` |"


def test_files_named_in_the_manual_exist() -> None:
    names = re.findall(r"`(config/[^`]+)`", manual())
    assert "config/config.yaml" in names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_defaults_are_valid_themselves() -> None:
    written_out = Configuration().model_dump(mode="json")
    jsonschema.validate(written_out, schema())
    assert Configuration.model_validate(written_out) == Configuration()
