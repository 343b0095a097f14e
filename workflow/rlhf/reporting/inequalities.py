"""The inequalities that the metrics of every PPO run must fulfil: data only, one line each.

A hard one follows from what is computed, so it holds in every correct run: a violation is a defect, and the tables are
not made. A soft one marks training that goes astray, which is a result too: a violation is a warning in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# P(mean KL < -NATS / samples) <= exp(-NATS), see `quantities`.
NATS = 20.0
# Difference of one token's log-probability between two passes in bf16 or fp16, in the mean.
HALF_PRECISION_NOISE = 0.01

Relation = Literal["<=", ">=", "<", ">", "=="]


@dataclass(frozen=True)
class Inequality:
    """One line: a statistic of a metric over a stage, and its bound.

    Attributes:
        metric: of metrics.jsonl; `*` takes all.
        statistic: name of one of `rlhf.reporting.checks.STATISTICS`.
        relation: between the statistic and the bound.
        bound: a number, or the name of one of `rlhf.reporting.checks.quantities`.
        cause: the usual cause of a violation.
        hard: whether every correct run fulfils it.
        stage: whose metrics.
        phase: of the lines of metrics.jsonl.
        when: name of one of `rlhf.reporting.checks.conditions`; where it does not hold, the line is left out.
        may_be_absent: whether a run may lack the metric although `when` holds.
    """

    metric: str
    statistic: str
    relation: Relation
    bound: float | str
    cause: str
    hard: bool = True
    stage: str = "ppo"
    phase: str = "train"
    when: str | None = None
    may_be_absent: bool = False


def _soft(
    metric: str,
    statistic: str,
    relation: Relation,
    bound: float | str,
    cause: str,
    stage: str = "ppo",
    phase: str = "train",
    when: str | None = None,
) -> Inequality:
    return Inequality(metric, statistic, relation, bound, cause, False, stage, phase, when)


BROKEN = "the file was edited, or a resumed stage lost or repeated lines"
COUNT = "a share was divided by the wrong count"

HARD = (
    Inequality("*", "numbers not finite", "==", 0, "overflow in fp16, or a learning rate that is too high"),
    Inequality("step", "last", "==", "planned_steps", BROKEN),
    Inequality("step", "smallest increase", ">=", 1, BROKEN),
    Inequality("step", "largest increase", "<=", 1, BROKEN),
    Inequality("tokens", "smallest increase", ">", 0, BROKEN),
    Inequality("tokens", "largest increase", "<=", "rollout_tokens", "padding was counted, or lengths are not obeyed"),
    Inequality(
        "sampling_logprob_error",
        "largest",
        "<=",
        "max_sampling_logprob_error",
        "position ids, temperature, dropout, or a family that ignores the attention mask",
        when="fp32",
    ),
    Inequality("sampling_logprob_error", "smallest", ">=", 0, "not an absolute difference"),
    Inequality(
        "first_ratio_error",
        "largest",
        "<=",
        "max_first_ratio_error",
        "dropout, or layers that behave differently in training mode",
        when="fp32",
    ),
    Inequality(
        "first_ratio_mean_error",
        "largest",
        "<=",
        "max_first_ratio_mean_error",
        "dropout, or layers that behave differently in training mode",
    ),
    Inequality("kl", "first magnitude", "<=", "first_kl", "policy and reference do not start from the same weights"),
    Inequality("kl", "smallest", ">=", "lowest_kl", "the sign of the log ratio, or answers not drawn from the policy"),
    Inequality("kl_coefficient", "smallest", ">=", 0, "the controller of an adaptive coefficient"),
    Inequality("entropy", "smallest", ">=", -1e-3, "log-probabilities that are not normalised"),
    Inequality("eos_share", "smallest", ">=", 0, COUNT),
    Inequality("eos_share", "largest", "<=", 1, COUNT),
    Inequality("response_length", "smallest", ">=", 1, "answers without any token"),
    Inequality("response_length", "largest", "<=", "max_answer_seq_len", "prompts were counted, or no limit was set"),
    Inequality("score_std", "smallest", ">=", 0, "not a deviation"),
    Inequality(
        "advantage_mean",
        "largest magnitude",
        "<=",
        1e-4,
        "whitening over other tokens than those of the answers",
        when="whitened",
    ),
    Inequality("clip_fraction", "smallest", ">=", 0, COUNT),
    Inequality("clip_fraction", "largest", "<=", 1, COUNT),
    Inequality("ratio_mean", "smallest", ">", 0, "a ratio is an exponential"),
    Inequality("ratio_max", "smallest", ">", 0, "a ratio is an exponential"),
    Inequality("approx_kl", "smallest", ">=", 0, "half a square cannot be negative"),
    Inequality("grad_norm", "smallest", ">=", 0, "not a norm"),
    Inequality("explained_variance", "largest", "<=", 1, "variances over different tokens", when="value model"),
    Inequality("value_loss", "smallest", ">=", 0, "half a square cannot be negative", when="value model"),
    Inequality("critic_grad_norm", "smallest", ">=", 0, "not a norm", when="value model"),
    Inequality("ptx_loss", "smallest", ">=", 0, "a negative log-likelihood cannot be negative", when="mixed"),
    # Absent in the first iterations, where the policy still is the reference and KL is 0.
    Inequality(
        "kl_loss", "smallest", ">=", -1e-6, "k2 and k3 cannot be negative", when="kl in loss", may_be_absent=True
    ),
    *(
        line
        for stage in ("sft", "reward")
        for line in (
            Inequality(
                "*", "numbers not finite", "==", 0, "overflow in fp16, or a learning rate too high", stage=stage
            ),
            Inequality("step", "smallest increase", ">=", 1, BROKEN, stage=stage),
            Inequality("step", "largest increase", "<=", 1, BROKEN, stage=stage),
            Inequality("loss", "smallest", ">=", 0, "a negative log-likelihood cannot be negative", stage=stage),
            Inequality(
                "loss", "smallest", ">=", 0, "a negative log-likelihood cannot be negative", stage=stage, phase="eval"
            ),
        )
    ),
    Inequality("accuracy", "smallest", ">=", 0, COUNT, stage="reward", phase="eval"),
    Inequality("accuracy", "largest", "<=", 1, COUNT, stage="reward", phase="eval"),
)

SOFT = (
    _soft("kl", "last level", "<=", 50, "kl_coefficient too small: the policy leaves what the reward model knows"),
    _soft("kl", "last level", "<=", "twice_kl_target", "kl_horizon too long, or learning too fast", when="adaptive KL"),
    _soft("score", "rise", ">=", 0, "learning rate too high or too low, or a KL penalty that outweighs the score"),
    _soft("entropy", "last over first level", ">=", 0.1, "collapse on few answers: raise kl_coefficient, learn slower"),
    _soft("eos_share", "rise", ">=", -0.1, "the reward model likes long answers: raise missing_eos_penalty"),
    _soft("response_length", "last over first level", "<=", 2, "the reward model likes long answers"),
    _soft("response_length", "last over first level", ">=", 0.5, "the reward model likes short answers"),
    _soft("clip_fraction", "mean", "<=", 0.3, "steps too large: lower the learning rate or ppo_epochs"),
    _soft("ratio_max", "largest", "<=", 100, "steps too large: lower the learning rate or ppo_epochs"),
    _soft("approx_kl", "largest", "<=", 0.2, "steps too large: lower the learning rate or ppo_epochs"),
    _soft("explained_variance", "last level", ">=", 0, "a value model no better than a constant", when="value model"),
    _soft("loss", "rise from first to last", "<", 0, "no learning on unseen rows: overfitting", "sft", "eval"),
    _soft("loss", "rise from first to last", "<", 0, "no learning on unseen pairs: overfitting", "reward", "eval"),
    _soft(
        "accuracy", "last", ">", 0.5, "a reward model that ranks unseen pairs no better than chance", "reward", "eval"
    ),
)

INEQUALITIES = (*HARD, *SOFT)
