"""The checks of an experiment's PPO runs: all of them, one row per inequality, and the warnings."""

from __future__ import annotations

from rlhf.reporting.collect import Experiment, Row, StageFiles
from rlhf.reporting.tables import Column, to_markdown

CHECK_COLUMNS = (
    "id",
    "stage",
    "phase",
    "metric",
    "statistic",
    "relation",
    "bound",
    "value",
    "hard",
    "holds",
    "cause",
)
TABLE_COLUMNS = (
    Column("stage", "stage"),
    Column("metric", "metric"),
    Column("statistic", "statistic"),
    Column("bound", "must be"),
    Column("values", "is (smallest to largest over the runs)"),
    Column("holds", "holds in"),
    Column("kind", "kind"),
    Column("cause", "usual cause of a violation"),
)
WARNING_COLUMNS = (
    Column("run", "run"),
    Column("seed", "seed"),
    *TABLE_COLUMNS[:4],
    Column("value", "is"),
    TABLE_COLUMNS[-1],
)

CHECK_NOTE = (
    "Every PPO run fulfils all inequalities marked hard, or these tables would not have been made. A soft one that "
    "does not hold is a sign of training that goes astray, and a warning only. A level is the mean over a fifth of the "
    "iterations, a rise the last level minus the first."
)


def _checked(experiment: Experiment) -> list[StageFiles]:
    return [stage for stage in experiment.in_order() if stage.checks is not None]


def check_rows(experiment: Experiment) -> list[Row]:
    """One row per PPO stage and inequality, as in checks.json."""
    return [{"id": stage.id, **check} for stage in _checked(experiment) for check in (stage.checks or {})["checks"]]


def check_table(experiment: Experiment) -> list[Row]:
    """One row per inequality over all runs; those with a violation come first."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in check_rows(experiment):
        key = tuple(row[name] for name in ("stage", "phase", "metric", "statistic", "relation", "cause"))
        groups.setdefault(key, []).append(row)
    rows = [_summary(rows) for rows in groups.values()]
    return sorted(rows, key=lambda row: row["all_hold"])


def _summary(rows: list[Row]) -> Row:
    bounds = list(dict.fromkeys(f"{row['relation']} {row['bound']:.4g}" for row in rows))
    values = sorted({row["value"] for row in rows if "value" in row})
    shown = list(dict.fromkeys(f"{value:.4g}" for value in values[:1] + values[-1:]))
    held = sum(row["holds"] for row in rows)
    return {
        "stage": _place(rows[0]),
        "metric": _metric(rows[0]),
        "statistic": rows[0]["statistic"],
        "bound": ", ".join(bounds),
        "values": " to ".join(shown) or None,
        "holds": f"{held} of {len(rows)}",
        "all_hold": held == len(rows),
        "kind": "hard" if rows[0]["hard"] else "soft",
        "cause": rows[0]["cause"],
    }


def warnings_text(experiment: Experiment) -> str:
    """Markdown for the index: how many inequalities were checked, and a table of those that do not hold."""
    rows = check_rows(experiment)
    violated = [row for row in rows if not row["holds"]]
    runs = {stage.id for stage in _checked(experiment)}
    text = f"{len(rows)} inequalities were checked on {len(runs)} PPO run(s)"
    if not violated:
        return f"{text}; all hold.\n"
    table = to_markdown(_warning_rows(experiment), WARNING_COLUMNS)
    return f"{text}; {len(violated)} warning(s) of training that may go astray:\n\n{table}"


def _warning_rows(experiment: Experiment) -> list[Row]:
    return [
        {
            "run": experiment.label(run.point),
            "seed": run.seed,
            "stage": _place(check),
            "metric": _metric(check),
            "statistic": check["statistic"],
            "bound": f"{check['relation']} {check['bound']:.4g}",
            "value": f"{check['value']:.4g}" if "value" in check else "absent",
            "cause": check["cause"],
        }
        for run in experiment.runs
        for check in (experiment.files(run, "ppo").checks or {})["checks"]
        if not check["holds"]
    ]


def _place(check: Row) -> str:
    return check["stage"] if check["phase"] == "train" else f"{check['stage']} ({check['phase']})"


def _metric(check: Row) -> str:
    return "every metric" if check["metric"] == "*" else check["metric"]
