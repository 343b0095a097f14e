"""How good the models of an experiment are: tables over runs and over seeds, and sample answers side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.evaluation.statistics import mean_interval
from rlhf.records.experiment import ExperimentRun
from rlhf.records.samples import SAMPLES, SamplePair, read_sample_pairs
from rlhf.reporting.collect import Experiment, largest_overlap, short_names
from rlhf.reporting.tables import TEXT_LIMIT, Column, Row, beginning, end, number, to_csv, to_html, to_markdown


@dataclass(frozen=True)
class Metric:
    """A number of a run: where it is found, how it is called and shown, and whether it is a share, from 0 to 1."""

    name: str
    title: str
    stage: str
    key: str
    decimals: int = 3
    share: bool = False


RUN_METRICS = (
    Metric("win_rate", "win rate", "evaluate_ppo", "win_rate", share=True),
    Metric("gold_win_rate", "gold win rate", "evaluate_ppo", "gold_win_rate", share=True),
    Metric("kl", "KL (nats)", "evaluate_ppo", "kl", 2),
    Metric("score", "score", "evaluate_ppo", "score_mean", 2),
    Metric("sft_score", "SFT score", "evaluate_ppo", "sft_score_mean", 2),
    Metric("gold", "gold", "evaluate_ppo", "gold_mean", 2),
    Metric("sft_gold", "SFT gold", "evaluate_ppo", "sft_gold_mean", 2),
    Metric("response_length", "length (tokens)", "evaluate_ppo", "response_length", 1),
    Metric("sft_response_length", "SFT length (tokens)", "evaluate_ppo", "sft_response_length", 1),
    Metric("eos_share", "EOS share", "evaluate_ppo", "eos_share", share=True),
    Metric("sft_eos_share", "SFT EOS share", "baseline", "eos_share", share=True),
    Metric("sft_perplexity", "SFT perplexity", "evaluate_sft", "perplexity", 2),
    Metric("reward_accuracy", "reward accuracy", "evaluate_reward", "accuracy", share=True),
    Metric("reward_longer_accuracy", "choosing the longer", "evaluate_reward", "longer_accuracy", share=True),
    Metric("reward_calibration_error", "calibration error", "evaluate_reward", "calibration_error", share=True),
    Metric("reward_gold_accuracy", "reward accuracy (gold)", "evaluate_reward", "gold_accuracy", share=True),
)


# What of that is trained on too, for the exact tables; those for people say it beside each number.
OVERLAPS = (
    Metric("sft_seen_in_train", "SFT rows trained on too", "evaluate_sft", "seen_in_train", 0),
    Metric("reward_seen_in_train", "reward prompts trained on too", "evaluate_reward", "seen_in_train", 0),
    Metric("seen_in_train", "prompts trained on too", "evaluate_ppo", "seen_in_train", 0),
)


def run_rows(experiment: Experiment) -> list[Row]:
    """One row per run: sweep values, seed and every metric that was measured."""
    return [{**run.point, "seed": run.seed, **_run_metrics(experiment, run)} for run in experiment.runs]


def run_table(experiment: Experiment) -> list[Row]:
    """The same for people: each number with what of its data is trained on too."""
    rows = run_rows(experiment)
    for run, row in zip(experiment.runs, rows, strict=True):
        for metric in RUN_METRICS:
            if metric.name in row:
                row[metric.name] = f"{row[metric.name]:.{metric.decimals}f}{_beside(experiment, [run], metric.stage)}"
    return rows


def _beside(experiment: Experiment, runs: Sequence[ExperimentRun], stage: str) -> str:
    """What stands behind a number of runs that was not measured on unseen data alone."""
    found = largest_overlap(experiment, runs, stage)
    return "" if found is None else f" ({found} trained on)"


def _run_metrics(experiment: Experiment, run: ExperimentRun) -> Row:
    found: Row = {}
    for metric in (*RUN_METRICS, *OVERLAPS):
        stage = experiment.files(run, metric.stage)
        evaluation: Mapping[str, object] = (stage.evaluation if stage is not None else None) or {}
        if evaluation.get(metric.key) is not None:
            found[metric.name] = evaluation[metric.key]
    return found


def run_columns(experiment: Experiment) -> list[Column]:
    """Columns of `run_table`."""
    metrics = [Column(metric.name, metric.title) for metric in RUN_METRICS]
    return [*_point_columns(experiment), Column("seed", "seed"), *metrics]


def run_keys(experiment: Experiment) -> list[str]:
    """Columns of `run_rows`."""
    return [*(column.key for column in run_columns(experiment)), *(metric.name for metric in OVERLAPS)]


def _point_columns(experiment: Experiment) -> list[Column]:
    keys = dict.fromkeys(key for run in experiment.runs for key in run.point)
    return [Column(key, name) for key, name in short_names(keys).items()]


def quality_rows(experiment: Experiment) -> list[Row]:
    """One row per sweep point: seeds, and `<metric>_{mean,sd,low,high}` over the seeds that measured it."""
    rows = []
    for runs in experiment.points():
        row: Row = {**runs[0].point, "seeds": len(runs)}
        measured = [_run_metrics(experiment, run) for run in runs]
        for metric in (*RUN_METRICS, *OVERLAPS):
            values = [metrics[metric.name] for metrics in measured if metric.name in metrics]
            if values:
                interval = mean_interval(values, within=(0, 1) if metric.share else None)
                row |= {f"{metric.name}_{part}": x for part, x in interval._asdict().items()}
        rows.append(row)
    return rows


def quality_csv(experiment: Experiment) -> str:
    """`quality_rows` as CSV."""
    rows = quality_rows(experiment)
    points = [column.key for column in _point_columns(experiment)]
    names = [f"{metric.name}_{part}" for metric in (*RUN_METRICS, *OVERLAPS) for part in PARTS]
    return to_csv(rows, [*points, "seeds", *(name for name in names if any(name in row for row in rows))])


QUALITY_NOTE = (
    "Mean ± standard deviation over seeds [95 % confidence interval of the mean, Student t, of which shares keep what "
    "lies between 0 and 1]; the mean alone for one seed. `(3 of 24 trained on)` behind a number: so many of the unseen "
    "rows or prompts that it was measured on are among the training rows too, because the source gives both."
)
WIN_RATE_NOTE = (
    "Win rates compare the policy with the SFT model on unseen prompts, ties count half. All runs answer the same "
    "prompts with the same noise (`evaluation.seed`), so that the interval is of training, not of sampling."
)
PARTS = ("mean", "sd", "low", "high")


def quality_note(experiment: Experiment) -> str:
    """What the cells of the quality table are."""
    return f"{QUALITY_NOTE} {WIN_RATE_NOTE}" if experiment.has("ppo") else QUALITY_NOTE


def quality_table(experiment: Experiment) -> tuple[list[Row], list[Column]]:
    """Rows and columns of the quality table for people: one cell per metric."""
    rows = []
    for row, runs in zip(quality_rows(experiment), experiment.points(), strict=True):
        cells = {
            metric.name: _interval_cell(row, metric, _beside(experiment, runs, metric.stage)) for metric in RUN_METRICS
        }
        rows.append({**{key: value for key, value in row.items() if key not in cells}, **cells})
    columns = [Column(metric.name, metric.title) for metric in RUN_METRICS]
    return rows, [*_point_columns(experiment), Column("seeds", "seeds"), *columns]


def _interval_cell(row: Row, metric: Metric, beside: str) -> str | None:
    if f"{metric.name}_mean" not in row:
        return None
    mean, sd, low, high = (row[f"{metric.name}_{part}"] for part in PARTS)
    digits = metric.decimals
    if sd is None:
        return f"{mean:.{digits}f}{beside}"
    return f"{mean:.{digits}f} ± {sd:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{beside}"


SAMPLES_NOTE = (
    "Answers to unseen prompts, which are shown as the model reads them. An answer ends with EOS, or is cut off at "
    "`ppo.max_answer_seq_len`; tokens count the EOS. Texts longer than "
    f"{TEXT_LIMIT} characters are shortened here (…): prompts keep their end, answers their beginning. Scores are the "
    "reward model's."
)


SAMPLE_COLUMNS = (
    Column("prompt", "prompt", end, free_text=True),
    Column("seen", "trained on too"),
    Column("sft", "SFT answer", beginning, free_text=True),
    Column("sft_end", "SFT end"),
    Column("policy", "policy answer", beginning, free_text=True),
    Column("policy_end", "policy end"),
    Column("sft_score", "SFT score", number(2)),
    Column("policy_score", "policy score", number(2)),
    Column("sft_gold", "SFT gold", number(2)),
    Column("policy_gold", "policy gold", number(2)),
)


def sample_rows(experiment: Experiment, limit: int) -> list[tuple[str, list[Row]]]:
    """For each sweep point with PPO a heading and the first `limit` samples of its first seed."""
    groups = []
    for runs in experiment.points():
        first = runs[0]
        compared = experiment.files(first, "evaluate_ppo")
        if compared is None:
            continue
        rows = read_sample_pairs(compared.folder / SAMPLES)
        groups.append((f"{experiment.label(first.point)} (seed {first.seed})", [_sample(row) for row in rows[:limit]]))
    return groups


def _sample(pair: SamplePair) -> Row:
    """A row of the table, with how each of the answers ended."""
    ends = {
        "sft_end": _answer_end(pair.get("sft_finished"), pair.get("sft_length")),
        "policy_end": _answer_end(pair.get("policy_finished"), pair.get("policy_length")),
    }
    return {**pair, **ends, "seen": "yes" if pair.get("seen_in_train") else None}


def _answer_end(finished: bool | None, tokens: int | None) -> str | None:
    """How an answer ended; None where that was not recorded."""
    return None if finished is None else f"{'EOS' if finished else 'cut off'} ({tokens} tokens)"


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
