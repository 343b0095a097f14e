"""The metrics of a PPO run against the table of inequalities."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

from rlhf.config.stages import HALF_PRECISION_RATIO_ERROR, PpoSettings
from rlhf.errors import UserError
from rlhf.records.checks import CheckRecord, ChecksReport
from rlhf.records.manifest import Manifest
from rlhf.records.metrics import MetricsLine
from rlhf.reporting.inequalities import HALF_PRECISION_NOISE, INEQUALITIES, NATS, Inequality

Metrics = Mapping[str, Sequence[MetricsLine]]  # stage kind -> lines of its metrics.jsonl

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}


def _levels(values: Sequence[float]) -> tuple[float, float]:
    """Means over the first and over the last fifth of the values."""
    part = max(1, len(values) // 5)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def _increases(values: Sequence[float]) -> list[float]:
    """By how much each value is above the one before; the first is compared with 0."""
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

    def record(self) -> CheckRecord:
        """An entry of checks.json; the value of an absent metric is absent."""
        line = self.line
        record: CheckRecord = {
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
        if self.value is not None:
            record["value"] = self.value
        return record


@dataclass(frozen=True)
class RunSettings:
    """What bounds and conditions depend on, of the settings that a PPO run's manifest holds; names as there."""

    dtype: str
    num_train_epochs: int
    iterations: int | None
    prompts_per_rollout: int
    answers_per_prompt: int
    max_prompt_seq_len: int
    max_answer_seq_len: int
    max_sampling_logprob_error: float
    max_first_ratio_error: float
    whiten_advantages: bool
    advantage_estimator: str
    ptx_coefficient: float
    kl_in: str
    kl_target: float | None

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The settings of a run; one that has no effect in it is not written, and has its default."""
        given = {**PpoSettings().model_dump(mode="json"), **manifest["spec"]["settings"]}
        return cls(**{field.name: given[field.name] for field in fields(cls)})


def quantities(manifest: Manifest) -> dict[str, float]:
    """Bounds that follow from a PPO run's settings and rows.

    The smallest KL: answers x are drawn from the policy, so exp(-d(x)) with d = log pi(x) - log pi_SFT(x) has mean 1 or
    less, also over n independent answers; by Markov's inequality their mean d is below -s / n with a probability of
    exp(-s) at most. Rounding of each token's log-probability comes on top.
    """
    settings = RunSettings.of(manifest)
    samples = settings.prompts_per_rollout * settings.answers_per_prompt
    answer = settings.max_answer_seq_len
    full = settings.dtype == "fp32"
    rounding = answer * (settings.max_sampling_logprob_error if full else HALF_PRECISION_NOISE)
    prompts = settings.num_train_epochs * manifest["rows_per_epoch"]
    return {
        "planned_steps": settings.iterations or max(1, prompts // settings.prompts_per_rollout),
        "rollout_tokens": samples * (settings.max_prompt_seq_len + answer),
        "max_sampling_logprob_error": settings.max_sampling_logprob_error,
        "max_first_ratio_error": settings.max_first_ratio_error,
        "max_first_ratio_mean_error": (
            settings.max_first_ratio_error if full else HALF_PRECISION_RATIO_ERROR[settings.dtype]
        ),
        "max_answer_seq_len": answer,
        "first_kl": rounding,
        "lowest_kl": -(NATS / samples + rounding),
        "twice_kl_target": 2 * (settings.kl_target or math.inf),
    }


def conditions(manifest: Manifest) -> dict[str, bool]:
    """Name of a condition, as in the table -> whether a PPO run fulfils it."""
    settings = RunSettings.of(manifest)
    return {
        "fp32": settings.dtype == "fp32",
        "whitened": settings.whiten_advantages,
        "value model": settings.advantage_estimator == "gae",
        "mixed": settings.ptx_coefficient > 0,
        "kl in loss": settings.kl_in == "loss",
        "adaptive KL": settings.kl_target is not None,
    }


def check_metrics(manifest: Manifest, metrics: Metrics, lines: Sequence[Inequality] = INEQUALITIES) -> list[Check]:
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
        lines = "".join(f"\n  {in_words(check)}" for check in violated)
        raise UserError(
            f"PPO run {run}: {len(violated)} inequalities that hold in every correct run do not hold, so no table is "
            "made of it. See metrics.jsonl of these stages, mend the cause, remove the stage's folder under results/ "
            f"and run snakemake again:{lines}"
        )


def in_words(check: Check) -> str:
    """One line for people: what is violated, by how much, and the usual cause."""
    line = check.line
    what = f"{line.stage} ({line.phase}): {line.statistic} of {line.metric}"
    if check.value is None:
        return f"{what} must be {line.relation} {check.bound:.6g}, but the metric is absent"
    return f"{what} is {check.value:.6g}, must be {line.relation} {check.bound:.6g}. Usual cause: {line.cause}"


def report(checks: Sequence[Check], run: str) -> ChecksReport:
    """Content of checks.json."""
    return {
        "schema_version": 1,
        "stage": "ppo",
        "id": run,
        "violated": sum(not check.holds for check in checks),
        "checks": [check.record() for check in checks],
    }


def _values(lines: Sequence[MetricsLine], inequality: Inequality) -> list[float]:
    chosen = [line.numbers for line in lines if line.phase == inequality.phase]
    if inequality.metric == "*":
        return [value for numbers in chosen for value in numbers.values()]
    return [numbers[inequality.metric] for numbers in chosen if inequality.metric in numbers]
