"""docs/memory.md shows what the command prints and what the benchmark found."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from transformers import OPTConfig

from rlhf.commands.memory import DOES_NOT_FIT, main
from rlhf.config.schema import MemorySettings
from rlhf.memory.measure import PhasePeak

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/memory.md").read_text(encoding="utf-8")


def test_the_example_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OPTConfig(
        vocab_size=50272, hidden_size=5120, num_hidden_layers=40, ffn_dim=20480, num_attention_heads=40,
        max_position_embeddings=2048, word_embed_proj_dim=5120,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "opt-13b")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    command, printed = re.findall(r"```(?:sh|text)\n(.*?)```", TEXT, re.DOTALL)[:2]
    assert main(shlex.split(command)[1:]) == DOES_NOT_FIT

    def lines(text: str) -> list[str]:
        return [line.rstrip() for line in text.splitlines() if line.strip()]

    assert lines(capsys.readouterr().out) == lines(printed)


def test_the_accuracy_is_that_of_the_benchmark() -> None:
    summary = json.loads((ROOT / "benchmarks/memory/results.json").read_text())["summary"]
    for kind, error in summary["errors"].items():
        figures = f"{error['mean']:.1%} | {error['median']:.1%} | {error['worst']:+.1%}"
        assert f"| {kind} | {error['rows']} | {figures} |" in TEXT
    bound = summary["upper_bound_too_low"]
    assert f"too low in {len(bound['too_low'])} of {bound['rows']} rows" in TEXT
    assert "out of memory, predicted: fits" not in summary["verdicts"]


def test_every_key_is_explained() -> None:
    for key in MemorySettings.model_fields:
        assert f"| `{key}` |" in TEXT
    for key in PhasePeak.__dataclass_fields__.keys() - {"name", "seconds"}:
        assert f"`{key}`" in TEXT, key
