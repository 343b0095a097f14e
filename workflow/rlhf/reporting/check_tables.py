"""The checks of an experiment's PPO runs: all of them, one row per inequality, and the warnings."""

from __future__ import annotations

from rlhf.records.checks import CheckRecord
from rlhf.reporting.collect import Experiment, StageFiles
from rlhf.reporting.tables import Column, Row, to_markdown

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


def _checks(stage: StageFiles) -> list[CheckRecord]:
    return stage.checks["checks"] if stage.checks is not None else []


def check_rows(experiment: Experiment) -> list[Row]:
    """One row per PPO stage and inequality, as in checks.json."""
    return [{"id": stage.id, **check} for stage in experiment.in_order() for check in _checks(stage)]


def check_table(experiment: Experiment) -> list[Row]:
    """One row per inequality over all runs; those with a violation come first."""
    groups: dict[tuple[str, ...], list[CheckRecord]] = {}
    for check in (check for stage in experiment.in_order() for check in _checks(stage)):
        place = (check["stage"], check["phase"], check["metric"])
        groups.setdefault((*place, check["statistic"], check["relation"], check["cause"]), []).append(check)
    rows = [_summary(checks) for checks in groups.values()]
    return sorted(rows, key=lambda row: row["all_hold"])


def _summary(checks: list[CheckRecord]) -> Row:
    first = checks[0]
    bounds = list(dict.fromkeys(f"{check['relation']} {check['bound']:.4g}" for check in checks))
    values = sorted({check["value"] for check in checks if "value" in check})
    shown = list(dict.fromkeys(f"{value:.4g}" for value in values[:1] + values[-1:]))
    held = sum(check["holds"] for check in checks)
    return {
        "stage": _place(first),
        "metric": _metric(first),
        "statistic": first["statistic"],
        "bound": ", ".join(bounds),
        "values": " to ".join(shown) or None,
        "holds": f"{held} of {len(checks)}",
        "all_hold": held == len(checks),
        "kind": "hard" if first["hard"] else "soft",
        "cause": first["cause"],
    }


def warnings_text(experiment: Experiment) -> str:
    """Markdown for the index: how many inequalities were checked, and a table of those that do not hold."""
    checked = {stage.id: _checks(stage) for stage in experiment.in_order() if stage.checks is not None}
    checks = [check for found in checked.values() for check in found]
    violated = [check for check in checks if not check["holds"]]
    text = f"{len(checks)} inequalities were checked on {len(checked)} PPO run(s)"
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
        for stage in experiment.of_runs([run], "ppo")
        for check in _checks(stage)
        if not check["holds"]
    ]


def _place(check: CheckRecord) -> str:
    return check["stage"] if check["phase"] == "train" else f"{check['stage']} ({check['phase']})"


def _metric(check: CheckRecord) -> str:
    return "every metric" if check["metric"] == "*" else check["metric"]
