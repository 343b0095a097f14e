"""Values of --config, which Snakemake hands over as text where they are nested, become what YAML would read."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from snakemake.cli import parse_config
from snakemake.utils import update_config

from rlhf.config import parse, with_types
from rlhf.config.expand import expand


def from_command_line(*entries: str, file: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration as Snakemake makes it of a file and of --config entries, with our types."""
    given = parse_config(list(entries))
    config = dict(file or {})
    update_config(config, given)
    return with_types(config, given)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{seeds: [1, 2]}", {"seeds": [1, 2]}),
        ("{ppo: {kl_coefficient: 0.25}}", {"ppo": {"kl_coefficient": 0.25}}),
        ("{sft: {learning_rate: 1e-5}}", {"sft": {"learning_rate": 1e-5}}),
        ("{sft: {learning_rate: 1.5E-5}}", {"sft": {"learning_rate": 1.5e-5}}),
        ("{ppo: {actor: {only_optimize_lora: true}}}", {"ppo": {"actor": {"only_optimize_lora": True}}}),
        ("{reward_model: null}", {"reward_model": None}),
        ("{data_split: '1,2,3'}", {"data_split": "1,2,3"}),
        ("{sweep: {ppo.kl_coefficient: [0, 1e-1]}}", {"sweep": {"ppo.kl_coefficient": [0, 0.1]}}),
    ],
)
def test_nested_values_have_the_types_of_a_file(entry: str, expected: dict[str, Any]) -> None:
    config = from_command_line(f"experiments={{tiny: {entry}}}")
    assert config == {"experiments": {"tiny": expected}}
    parse(config)


def test_a_sweep_of_numbers_is_one_of_numbers() -> None:
    config = from_command_line("experiments={tiny: {sweep: {sft.learning_rate: [1e-5, 2e-5]}}}")
    points = [settings.sft.learning_rate for _, settings in expand("tiny", config["experiments"]["tiny"])]
    assert points == [1e-5, 2e-5]


def test_text_of_digits_stays_text_where_text_is_wanted() -> None:
    config = from_command_line("models={big: {source: {hub: org/big, revision: 1234567}}}")
    assert config["models"]["big"]["source"] == {"hub": "org/big", "revision": "1234567"}
    config = from_command_line("defaults={policy: 13, data_path: [7, true], seeds: [7]}")
    assert config["defaults"] == {"policy": "13", "data_path": ["7", "true"], "seeds": [7]}


def test_values_of_a_model_that_may_be_anything_are_numbers() -> None:
    config = from_command_line("models={m: {source: scratch, architecture: {n_layer: 2, resid_pdrop: 1e-1}}}")
    assert config["models"]["m"]["architecture"] == {"n_layer": 2, "resid_pdrop": 0.1}


def test_a_file_keeps_its_own_types_and_mistakes() -> None:
    file = yaml.safe_load("experiments: {tiny: {seeds: ['1'], sft: {learning_rate: 1e-5}}}")
    config = from_command_line("experiments={tiny: {ppo: {iterations: 3}}}", file=file)
    assert config["experiments"]["tiny"] == {
        "seeds": ["1"],
        "sft": {"learning_rate": "1e-5"},
        "ppo": {"iterations": 3},
    }


def test_a_value_that_is_no_number_is_shown_as_it_was_given() -> None:
    config = from_command_line("experiments={tiny: {seeds: [one]}}")
    assert config == {"experiments": {"tiny": {"seeds": ["one"]}}}
