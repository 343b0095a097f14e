"""The metrics of a PPO run against the table of inequalities."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.stages import HALF_PRECISION_RATIO_ERROR
from rlhf.errors import UserError
from rlhf.reporting.inequalities import HALF_PRECISION_NOISE, INEQUALITIES, NATS, Inequality

Metrics = dict[str, list[dict[str, Any]]]

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}


def _levels(values: Sequence[float]) -> tuple[float, float]:
    """Means over the first and the last fifth."""
    part = max(1, len(values) // 5)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def _increases(values: Sequence[float]) -> list[float]:
    """From one line to the next, and from 0 to the first."""
    return [new - old for old, new in zip([0, *values], values, strict=False)]


def _over(levels: tuple[float, float]) -> float:
    first, last = levels
    return last / first if first else math.inf


# Each takes the values of all lines, of which there is at least one.
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "smallest": min,
    "largest": max,
    "largest magnitude": lambda values: max(map(abs, values)),
    "mean": lambda values: sum(values) / len(values),
    "first magnitude": lambda values: abs(values[0]),
    "last": lambda values: values[-1],
    "last level": lambda values: _levels(values)[1],
    "rise": lambda values: _levels(values)[1] - _levels(values)[0],
    "rise from first to last": lambda values: values[-1] - values[0],
    "last over first level": lambda values: _over(_levels(values)),
    "smallest increase": lambda values: min(_increases(values)),
    "largest increase": lambda values: max(_increases(values)),
    "numbers not finite": lambda values: sum(not math.isfinite(value) for value in values),
}
COMPARISONS = ("rise", "rise from first to last", "last over first level")  # say nothing of a single line


@dataclass(frozen=True)
class Check:
    """An inequality on the metrics of one run.

    Attributes:
        line: the inequality.
        bound: its bound in this run.
        value: of the statistic; None where the metric is absent.
        holds: whether the inequality does.
    """

    line: Inequality
    bound: float
    value: float | None
    holds: bool

    def row(self) -> dict[str, Any]:
        """An entry of checks.json; the value of an absent metric is absent."""
        line = self.line
        row = {
            "stage": line.stage,
            "phase": line.phase,
            "metric": line.metric,
            "statistic": line.statistic,
            "relation": line.relation,
            "bound": self.bound,
            "hard": line.hard,
            "holds": self.holds,
            "cause": line.cause,
        }
        return row if self.value is None else row | {"value": self.value}


def quantities(manifest: dict[str, Any]) -> dict[str, float]:
    """Bounds that follow from a PPO run's settings and rows.

    The smallest KL: answers x are drawn from the policy, so exp(-d(x)) with d = log pi(x) - log pi_SFT(x) has mean 1 or
    less, also over n independent answers; by Markov's inequality their mean d is below -s / n with a probability of
    exp(-s) at most. Rounding of each token's log-probability comes on top.
    """
    settings = manifest["spec"]["settings"]
    samples = settings["prompts_per_rollout"] * settings["answers_per_prompt"]
    answer = settings["max_answer_seq_len"]
    full = settings["dtype"] == "fp32"
    rounding = answer * (settings["max_sampling_logprob_error"] if full else HALF_PRECISION_NOISE)
    prompts = settings["num_train_epochs"] * manifest["rows"]["train"]
    return {
        "planned_steps": settings["iterations"] or max(1, prompts // settings["prompts_per_rollout"]),
        "rollout_tokens": samples * (settings["max_prompt_seq_len"] + answer),
        "max_sampling_logprob_error": settings["max_sampling_logprob_error"],
        "max_first_ratio_error": settings["max_first_ratio_error"],
        "max_first_ratio_mean_error": (
            settings["max_first_ratio_error"] if full else HALF_PRECISION_RATIO_ERROR[settings["dtype"]]
        ),
        "max_answer_seq_len": answer,
        "first_kl": rounding,
        "lowest_kl": -(NATS / samples + rounding),
        "twice_kl_target": 2 * (settings["kl_target"] or math.inf),
    }


def conditions(manifest: dict[str, Any]) -> dict[str, bool]:
    """What a PPO run has."""
    settings = manifest["spec"]["settings"]
    return {
        "fp32": settings["dtype"] == "fp32",
        "whitened": settings["whiten_advantages"],
        "value model": settings["advantage_estimator"] == "gae",
        "mixed": settings["ptx_coefficient"] > 0,
        "kl in loss": settings["kl_in"] == "loss",
        "adaptive KL": settings["kl_target"] is not None,
    }


def check_metrics(
    manifest: dict[str, Any], metrics: Metrics, lines: Sequence[Inequality] = INEQUALITIES
) -> list[Check]:
    """Compare a PPO run, and the stages it starts from, with the inequalities that apply to it.

    Args:
        manifest: of the PPO stage.
        metrics: stage kind -> lines of its metrics.jsonl.
        lines: the table.

    Returns:
        One entry per line that applies; comparisons of a single value are left out.
    """
    bounds, holds = quantities(manifest), conditions(manifest)
    checks = []
    for line in lines:
        values = _values(metrics[line.stage], line)
        applies = line.when is None or holds[line.when]
        if not applies or (len(values) == 1 and line.statistic in COMPARISONS):
            continue
        bound = bounds[line.bound] if isinstance(line.bound, str) else line.bound
        if not values:
            checks.append(Check(line, bound, None, line.may_be_absent))
            continue
        value = STATISTICS[line.statistic](values)
        checks.append(Check(line, bound, value, RELATIONS[line.relation](value, bound)))
    return checks


def require_hard(checks: Sequence[Check], run: str) -> None:
    """Refuse a run that no correct program makes.

    Args:
        checks: of the run.
        run: its ID, for the message.

    Raises:
        UserError: hard inequalities are violated; the message names each with its value, bound and usual cause.
    """
    violated = [check for check in checks if check.line.hard and not check.holds]
    if violated:
        lines = "".join(f"\n  {describe(check)}" for check in violated)
        raise UserError(
            f"PPO run {run}: {len(violated)} inequalities that hold in every correct run do not hold, so no table is "
            "made of it. See metrics.jsonl of these stages, mend the cause, remove the stage's folder under results/ "
            f"and run snakemake again:{lines}"
        )


def describe(check: Check) -> str:
    """One line for people: what is violated, by how much, and the usual cause."""
    line = check.line
    what = f"{line.stage} ({line.phase}): {line.statistic} of {line.metric}"
    if check.value is None:
        return f"{what} must be {line.relation} {check.bound:.6g}, but the metric is absent"
    return f"{what} is {check.value:.6g}, must be {line.relation} {check.bound:.6g}. Usual cause: {line.cause}"


def report(checks: Sequence[Check], run: str) -> dict[str, Any]:
    """Content of checks.json."""
    return {
        "schema_version": 1,
        "stage": "ppo",
        "id": run,
        "violated": sum(not check.holds for check in checks),
        "checks": [check.row() for check in checks],
    }


def _values(rows: Sequence[dict[str, Any]], line: Inequality) -> list[float]:
    chosen = [row for row in rows if row["phase"] == line.phase]
    if line.metric == "*":
        return [value for row in chosen for value in row.values() if isinstance(value, int | float)]
    return [row[line.metric] for row in chosen if line.metric in row]
