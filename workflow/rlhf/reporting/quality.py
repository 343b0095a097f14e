"""How good the models of an experiment are: tables over runs and over seeds, and sample answers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf.evaluation.statistics import mean_interval
from rlhf.records.experiment import ExperimentRun
from rlhf.records.samples import SAMPLES, SamplePair, read_sample_pairs
from rlhf.reporting.collect import Experiment, short_names
from rlhf.reporting.tables import Column, Row, number, to_csv, to_html, to_markdown


@dataclass(frozen=True)
class Metric:
    """A number of a run: where it is found, how it is called and how many decimals it is shown with."""

    name: str
    title: str
    stage: str
    key: str
    decimals: int = 3


RUN_METRICS = (
    Metric("win_rate", "win rate", "evaluate_ppo", "win_rate"),
    Metric("gold_win_rate", "gold win rate", "evaluate_ppo", "gold_win_rate"),
    Metric("kl", "KL (nats)", "evaluate_ppo", "kl", 2),
    Metric("score", "score", "evaluate_ppo", "score_mean", 2),
    Metric("sft_score", "SFT score", "evaluate_ppo", "sft_score_mean", 2),
    Metric("gold", "gold", "evaluate_ppo", "gold_mean", 2),
    Metric("sft_gold", "SFT gold", "evaluate_ppo", "sft_gold_mean", 2),
    Metric("response_length", "length (tokens)", "evaluate_ppo", "response_length", 1),
    Metric("sft_response_length", "SFT length (tokens)", "evaluate_ppo", "sft_response_length", 1),
    Metric("eos_share", "EOS share", "evaluate_ppo", "eos_share"),
    Metric("sft_eos_share", "SFT EOS share", "baseline", "eos_share"),
    Metric("sft_perplexity", "SFT perplexity", "evaluate_sft", "perplexity", 2),
    Metric("reward_accuracy", "reward accuracy", "evaluate_reward", "accuracy"),
    Metric("reward_longer_accuracy", "choosing the longer", "evaluate_reward", "longer_accuracy"),
    Metric("reward_calibration_error", "calibration error", "evaluate_reward", "calibration_error"),
    Metric("reward_gold_accuracy", "reward accuracy (gold)", "evaluate_reward", "gold_accuracy"),
)


def run_rows(experiment: Experiment) -> list[Row]:
    """One row per run: sweep values, seed and every metric that was measured."""
    return [{**run.point, "seed": run.seed, **_run_metrics(experiment, run)} for run in experiment.runs]


def _run_metrics(experiment: Experiment, run: ExperimentRun) -> Row:
    found: Row = {}
    for metric in RUN_METRICS:
        stage = experiment.files(run, metric.stage)
        evaluation: Mapping[str, object] = (stage.evaluation if stage is not None else None) or {}
        if evaluation.get(metric.key) is not None:
            found[metric.name] = evaluation[metric.key]
    return found


def run_columns(experiment: Experiment) -> list[Column]:
    """Columns of `run_rows`."""
    metrics = [Column(metric.name, metric.title, number(metric.decimals)) for metric in RUN_METRICS]
    return [*_point_columns(experiment), Column("seed", "seed"), *metrics]


def _point_columns(experiment: Experiment) -> list[Column]:
    keys = dict.fromkeys(key for run in experiment.runs for key in run.point)
    return [Column(key, name) for key, name in short_names(keys).items()]


def quality_rows(experiment: Experiment) -> list[Row]:
    """One row per sweep point: seeds, and `<metric>_{mean,sd,low,high}` over the seeds that measured it."""
    rows = []
    for runs in experiment.points():
        row: Row = {**runs[0].point, "seeds": len(runs)}
        measured = [_run_metrics(experiment, run) for run in runs]
        for metric in RUN_METRICS:
            values = [metrics[metric.name] for metrics in measured if metric.name in metrics]
            if values:
                row |= {f"{metric.name}_{part}": x for part, x in mean_interval(values)._asdict().items()}
        rows.append(row)
    return rows


def quality_csv(experiment: Experiment) -> str:
    """`quality_rows` as CSV."""
    rows = quality_rows(experiment)
    points = [column.key for column in _point_columns(experiment)]
    names = [f"{metric.name}_{part}" for metric in RUN_METRICS for part in ("mean", "sd", "low", "high")]
    return to_csv(rows, [*points, "seeds", *(name for name in names if any(name in row for row in rows))])


QUALITY_NOTE = (
    "Mean ± standard deviation over seeds [95 % confidence interval of the mean, Student t]; the mean alone for one "
    "seed."
)
WIN_RATE_NOTE = "Win rates compare the policy with the SFT model on unseen prompts, ties count half."


def quality_note(experiment: Experiment) -> str:
    """What the cells of the quality table are."""
    return f"{QUALITY_NOTE} {WIN_RATE_NOTE}" if experiment.has("ppo") else QUALITY_NOTE


def quality_table(experiment: Experiment) -> tuple[list[Row], list[Column]]:
    """Rows and columns of the quality table for people: one cell per metric."""
    rows = []
    for row in quality_rows(experiment):
        cells = {metric.name: _interval_cell(row, metric) for metric in RUN_METRICS}
        rows.append({**{key: value for key, value in row.items() if key not in cells}, **cells})
    columns = [Column(metric.name, metric.title) for metric in RUN_METRICS]
    return rows, [*_point_columns(experiment), Column("seeds", "seeds"), *columns]


def _interval_cell(row: Row, metric: Metric) -> str | None:
    if f"{metric.name}_mean" not in row:
        return None
    mean, sd, low, high = (row[f"{metric.name}_{part}"] for part in ("mean", "sd", "low", "high"))
    digits = metric.decimals
    if sd is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {sd:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


TEXT_LIMIT = 400
SAMPLES_NOTE = (
    f"Answers to unseen prompts. Texts longer than {TEXT_LIMIT} characters are cut (…): prompts keep their end, "
    "answers their beginning. Scores are the reward model's."
)


def _beginning(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1].rstrip() + "…"


def _end(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else "…" + text[1 - TEXT_LIMIT :].lstrip()


SAMPLE_COLUMNS = (
    Column("prompt", "prompt", _end, free_text=True),
    Column("sft", "SFT answer", _beginning, free_text=True),
    Column("policy", "policy answer", _beginning, free_text=True),
    Column("sft_score", "SFT score", number(2)),
    Column("policy_score", "policy score", number(2)),
    Column("sft_gold", "SFT gold", number(2)),
    Column("policy_gold", "policy gold", number(2)),
)


def sample_rows(experiment: Experiment, limit: int) -> list[tuple[str, list[SamplePair]]]:
    """For each sweep point with PPO a heading and the first `limit` samples of its first seed."""
    groups = []
    for runs in experiment.points():
        first = runs[0]
        compared = experiment.files(first, "evaluate_ppo")
        if compared is None:
            continue
        rows = read_sample_pairs(compared.folder / SAMPLES)
        groups.append((f"{experiment.label(first.point)} (seed {first.seed})", rows[:limit]))
    return groups


def samples_markdown(experiment: Experiment, limit: int) -> str:
    """samples.md: one table per sweep point."""
    parts = [f"# Sample answers of {experiment.name}\n\n{experiment.note('ppo', SAMPLES_NOTE)}\n"]
    parts += [
        f"\n## {heading}\n\n{to_markdown(rows, SAMPLE_COLUMNS)}" for heading, rows in sample_rows(experiment, limit)
    ]
    return "".join(parts)


def samples_html(experiment: Experiment, limit: int) -> str:
    """The same as one HTML table, with the sweep point in its first column."""
    groups = sample_rows(experiment, limit)
    rows = [{"point": heading, **row} for heading, group in groups for row in group]
    columns = [Column("point", "run"), *SAMPLE_COLUMNS]
    return to_html(rows, columns, f"Sample answers of {experiment.name}", experiment.note("ppo", SAMPLES_NOTE))
