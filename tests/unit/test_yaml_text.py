"""A key stands once: YAML readers keep the last of equal keys in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlhf.commands.memory import parse_args, stage_section
from rlhf.config.specfile import read_spec
from rlhf.config.specification import SftSpecification
from rlhf.config.yaml_text import read_yaml, require_distinct_keys
from rlhf.errors import UserError


def refused(text: str) -> str:
    with pytest.raises(UserError) as raised:
        read_yaml(text, "my.yaml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "line", "key", "before"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a", 1),
        ("defaults:\n  sft: {x: 1}\n  ppo: {}\n  sft:\n    y: 2\n", 4, "defaults.sft", 2),
        ("experiments:\n  tiny: {}\n  'tiny': {}\n", 3, "experiments.tiny", 2),
        ("a:\n- b: 1\n- {c: 1,\n   c: 2}\n", 4, "a.1.c", 3),
        ('{"a": {"b": 1,\n "b": 2}}', 2, "a.b", 1),
        ("seeds:\n  1: x\n  1.0: y\n", 3, "seeds.1.0", 2),
        ("? yes\n: 1\n? true\n: 2\n", 3, "True", 1),
        ("base: &b\n  k: 1\n  k: 2\nother: *b\n", 3, "base.k", 2),
    ],
)
def test_the_message_names_key_and_both_lines(text: str, line: int, key: str, before: int) -> None:
    assert f"my.yaml: line {line}: {key!r} stands there again, after line {before};" in refused(text)


def test_every_repetition_is_said() -> None:
    assert refused("a: 1\na: 2\na: 3\nb: {c: 1, c: 2}\n").count("stands there again") == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nA: 2\n'1': 3\n1: 4\n",
        "x: &x {k: 1}\ny: &y {k: 2}\nz:\n  <<: *x\n  <<: *y\n  k: 3\n",
        "a: &a {k: 1}\nb: {<<: *a, k: 2}\nc: [*a, *a]\n",
        "__use_yte__: true\n?if True:\n  a: 1\n?if False:\n  a: 2\n",
        "a: &a\n  b: *a\n",
    ],
)
def test_what_is_no_repetition_is_read_as_before(text: str) -> None:
    assert repr(read_yaml(text, "my.yaml")) == repr(yaml.safe_load(text))


def test_configuration_files_are_checked_and_others_left_to_snakemake(tmp_path: Path) -> None:
    good, bad, strange = (tmp_path / name for name in ("good.yaml", "bad.yaml", "strange.json"))
    good.write_text("a: 1\n")
    bad.write_text("a: 1\na: 1\n")
    strange.write_text("{")
    require_distinct_keys([good, strange, tmp_path / "absent.yaml"])
    with pytest.raises(UserError, match=r"bad\.yaml: line 2: 'a'"):
        require_distinct_keys([good, bad])


def test_json_with_tabs_is_checked_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{\n\t"a": {},\n\t"a": {}\n}\n')
    with pytest.raises(UserError, match=r"config\.json: .*'a'"):
        require_distinct_keys([file])


def test_specifications_and_settings_of_rlhf_memory_too(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("stage: sft\nstage: sft\n")
    with pytest.raises(UserError, match=r"spec\.yaml: line 2: 'stage' stands there again"):
        read_spec(SftSpecification, spec)
    arguments = parse_args(["model", "--stage", "sft", "--set", "execution={zero_stage: 1, zero_stage: 2}"])
    with pytest.raises(UserError, match="--set execution: line 1: 'zero_stage' stands there again"):
        stage_section(arguments)
