"""Tables: one definition of columns, written as CSV (exact), Markdown and HTML (for people)."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlhf.evaluation.statistics import mean_interval
from rlhf.reporting.collect import Experiment, ExperimentRun, Row, StageFiles, short_names

MIB = 2**20


@dataclass(frozen=True)
class Metric:
    """A number of a run: where it is found, how it is called and how many decimals it is shown with."""

    name: str
    title: str
    stage: str
    key: str
    decimals: int = 3


METRICS = (
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


@dataclass(frozen=True)
class Column:
    """A column of a table: key in the rows, heading, how a value is shown, and whether it is free text."""

    key: str
    title: str
    show: Callable[[Any], str] = str
    free_text: bool = False


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """CSV with full precision; an absent value is an empty field."""
    # Objects keep integers as they are where a column has absent values.
    text: str = pd.DataFrame(list(rows), columns=list(columns), dtype=object).to_csv(index=False, lineterminator="\n")
    return text


def to_markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A Markdown table; columns without any value are left out, an absent value is an empty cell."""
    shown = _shown(rows, columns)
    free = {column.title for column in columns if column.free_text}
    cells = shown.apply(lambda column: [escape_markdown(cell, column.name in free) for cell in column])
    cells.columns = [escape_markdown(title) for title in shown.columns]
    text: str = cells.to_markdown(index=False, tablefmt="pipe", disable_numparse=True)
    return text + "\n"


def to_html(rows: Sequence[Row], columns: Sequence[Column], title: str, note: str = "") -> str:
    """A self-contained HTML page with the same table, for Snakemake's report."""
    with pd.option_context("display.max_colwidth", None):
        table = _shown(rows, columns).to_html(index=False, border=0, justify="left")
    style = (
        "body{font:14px sans-serif;margin:1.5em;color:#222}table{border-collapse:collapse}"
        "th,td{padding:.35em .7em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd;white-space:pre-wrap}"
        "th{border-bottom:2px solid #888}"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style></head>\n<body><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>\n"
        f"{table}</body></html>\n"
    )


def escape_markdown(text: str, free_text: bool = False) -> str:
    """Text that stays one cell of a Markdown table; free text is shown as it is written, without any formatting."""
    escaped = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|`*_[]~#" if free_text else "|":
        escaped = escaped.replace(mark, f"\\{mark}")
    return "<br>".join(escaped.splitlines())


def _shown(rows: Sequence[Row], columns: Sequence[Column]) -> pd.DataFrame:
    """The rows as people see them; columns without any value are left out, an absent value is an empty text."""
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    cells = [["" if row.get(c.key) is None else c.show(row[c.key]) for c in used] for row in rows]
    return pd.DataFrame(cells, columns=[column.title for column in used], dtype=object)


def number(decimals: int) -> Callable[[float], str]:
    """Shows a number with a fixed count of decimals."""
    return lambda value: f"{value:.{decimals}f}"


def run_rows(experiment: Experiment) -> list[Row]:
    """One row per run: sweep values, seed and every metric that was measured."""
    return [{**run.point, "seed": run.seed, **_run_metrics(experiment, run)} for run in experiment.runs]


def _run_metrics(experiment: Experiment, run: ExperimentRun) -> Row:
    found = {metric.name: (experiment.files(run, metric.stage).evaluation or {}).get(metric.key) for metric in METRICS}
    return {name: value for name, value in found.items() if value is not None}


def run_columns(experiment: Experiment) -> list[Column]:
    """Columns of `run_rows`."""
    metrics = [Column(metric.name, metric.title, number(metric.decimals)) for metric in METRICS]
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
        for metric in METRICS:
            values = [metrics[metric.name] for metrics in measured if metric.name in metrics]
            if values:
                row |= {f"{metric.name}_{part}": x for part, x in mean_interval(values)._asdict().items()}
        rows.append(row)
    return rows


def quality_csv(experiment: Experiment) -> str:
    """`quality_rows` as CSV."""
    rows = quality_rows(experiment)
    points = [column.key for column in _point_columns(experiment)]
    names = [f"{metric.name}_{part}" for metric in METRICS for part in ("mean", "sd", "low", "high")]
    return to_csv(rows, [*points, "seeds", *(name for name in names if any(name in row for row in rows))])


QUALITY_NOTE = (
    "Mean ± standard deviation over seeds [95 % confidence interval of the mean, Student t]; the mean alone for one "
    "seed. Win rates compare the policy with the SFT model on unseen prompts, ties count half."
)


def quality_table(experiment: Experiment) -> tuple[list[Row], list[Column]]:
    """Rows and columns of the quality table for people: one cell per metric."""
    rows = []
    for row in quality_rows(experiment):
        cells = {metric.name: _interval_cell(row, metric) for metric in METRICS}
        rows.append({**{key: value for key, value in row.items() if key not in cells}, **cells})
    columns = [Column(metric.name, metric.title) for metric in METRICS]
    return rows, [*_point_columns(experiment), Column("seeds", "seeds"), *columns]


def _interval_cell(row: Row, metric: Metric) -> str | None:
    if f"{metric.name}_mean" not in row:
        return None
    mean, sd, low, high = (row[f"{metric.name}_{part}"] for part in ("mean", "sd", "low", "high"))
    digits = metric.decimals
    if sd is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {sd:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


RESOURCE_COLUMNS = (
    Column("stage", "stage"),
    Column("id", "ID"),
    Column("processes", "processes"),
    Column("seconds", "time (s)", number(1)),
    Column("tokens_per_second", "useful tokens/s", number(0)),
    Column("peak_rss_mib", "peak RSS (MiB)", number(0)),
    Column("peak_allocated_mib", "peak device memory (MiB)", number(0)),
    Column("job_max_rss_mib", "peak RSS of the job (MiB)", number(0)),
    Column("job_cpu_seconds", "CPU time of the job (s)", number(1)),
)


def resource_rows(experiment: Experiment) -> list[Row]:
    """One row per stage: time, memory and speed, as far as they were measured."""
    return [_resources(stage) for stage in experiment.in_order()]


def _resources(stage: StageFiles) -> Row:
    manifest, memory, benchmark = stage.manifest or {}, stage.memory or {}, stage.benchmark or {}
    if "slurm_job_id" in manifest:  # srun started the trainer: the benchmark saw the client of srun only
        benchmark = {"s": benchmark.get("s")}
    processes = memory.get("processes", [])
    row = {
        "stage": stage.kind,
        "id": stage.id,
        "processes": len(processes) or manifest.get("world_size"),
        "seconds": manifest.get("wall_seconds", _measured(benchmark.get("s"))),
        "tokens_per_second": _mean_speed(stage),
        "peak_rss_mib": memory["peak_rss"] / MIB if memory else None,
        "peak_allocated_mib": _peak_allocated(processes),
        "job_max_rss_mib": _measured(benchmark.get("max_rss")),
        "job_cpu_seconds": _measured(benchmark.get("cpu_time")),
    }
    return {key: value for key, value in row.items() if value is not None}


def _measured(value: Any) -> float | None:
    """Snakemake writes NA where a job was too short to be measured."""
    return float(value) if isinstance(value, int | float) else None


def _mean_speed(stage: StageFiles) -> float | None:
    speeds = [line["tokens_per_second"] for line in stage.metrics if "tokens_per_second" in line]
    return sum(speeds) / len(speeds) if speeds else None


def _peak_allocated(processes: list[Row]) -> float | None:
    peaks = [
        phase["peak_allocated"] for process in processes for phase in process["phases"] if "peak_allocated" in phase
    ]
    return max(peaks) / MIB if peaks else None


MEMORY_COLUMNS = (
    "stage",
    "id",
    "rank",
    "host",
    "phase",
    "seconds",
    "start_rss",
    "peak_rss",
    "end_rss",
    "end_pss",
    "peak_allocated",
    "peak_active",
    "peak_reserved",
    "peak_inactive_split",
    "peak_device",
    "alloc_retries",
    "ooms",
)


def memory_rows(experiment: Experiment) -> list[Row]:
    """One row per stage, process and phase, in bytes; device figures only where an accelerator was used."""
    return [
        {"stage": stage.kind, "id": stage.id, "rank": process["rank"], "host": process["host"]}
        | {("phase" if key == "name" else key): value for key, value in phase.items()}
        for stage in experiment.in_order()
        for process in (stage.memory or {}).get("processes", [])
        for phase in process["phases"]
    ]
