"""Sample answers of the SFT model and the policy, side by side."""

from __future__ import annotations

from rlhf.files import read_jsonl
from rlhf.reporting.collect import Experiment, Row
from rlhf.reporting.tables import Column, number, to_html, to_markdown

TEXT_LIMIT = 400

NOTE = (
    f"Answers to unseen prompts. Texts longer than {TEXT_LIMIT} characters are cut (…): prompts keep their end, "
    "answers their beginning. Scores are the reward model's."
)


def _beginning(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1].rstrip() + "…"


def _end(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else "…" + text[1 - TEXT_LIMIT :].lstrip()


COLUMNS = (
    Column("prompt", "prompt", _end, free_text=True),
    Column("sft", "SFT answer", _beginning, free_text=True),
    Column("policy", "policy answer", _beginning, free_text=True),
    Column("sft_score", "SFT score", number(2)),
    Column("policy_score", "policy score", number(2)),
    Column("sft_gold", "SFT gold", number(2)),
    Column("policy_gold", "policy gold", number(2)),
)


def sample_rows(experiment: Experiment, limit: int) -> list[tuple[str, list[Row]]]:
    """For each sweep point a heading and the first `limit` samples of its first seed."""
    groups = []
    for runs in experiment.points():
        first = runs[0]
        rows = read_jsonl(experiment.files(first, "evaluate_ppo").folder / "samples.jsonl")
        groups.append((f"{experiment.label(first.point)} (seed {first.seed})", rows[:limit]))
    return groups


def samples_markdown(experiment: Experiment, limit: int) -> str:
    """samples.md: one table per sweep point."""
    parts = [f"# Sample answers of {experiment.name}\n\n{NOTE}\n"]
    parts += [f"\n## {heading}\n\n{to_markdown(rows, COLUMNS)}" for heading, rows in sample_rows(experiment, limit)]
    return "".join(parts)


def samples_html(experiment: Experiment, limit: int) -> str:
    """The same as one HTML table, with the sweep point in its first column."""
    groups = sample_rows(experiment, limit)
    rows = [{"point": heading, **row} for heading, group in groups for row in group]
    return to_html(rows, [Column("point", "run"), *COLUMNS], f"Sample answers of {experiment.name}", NOTE)
