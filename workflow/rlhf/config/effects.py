"""Which settings have no effect under the others of their stage.

They are left out of what an ID stands for, so that changing one computes nothing again; and a configuration that sets
one is refused, so that nobody takes a result for its effect. A key counts where it is written: one in `defaults` or in
a sweep is refused where no run uses it, not where one experiment or point does without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlhf.config.expand import dotted
from rlhf.config.schema import ExperimentSettings
from rlhf.config.section import Section
from rlhf.config.stages import (
    Optimization,
    PpoSection,
    PpoSettings,
    RewardSection,
    RewardSettings,
    SftSection,
    SupervisedSettings,
)
from rlhf.errors import UserError
from rlhf.phases import PHASES

Reasons = Iterator[tuple[str, str]]

LORA_KEYS = ("lora_alpha", "lora_module_name", "lora_learning_rate", "only_optimize_lora")
VALUE_KEYS = ("critic", "gamma", "gae_lambda", "value_clip_range")
# Values of keys without effect that say what happens all the same.
TRUE_ANYWAY = {"num_warmup_steps": 0}
FP32_LIMITS = ("max_sampling_logprob_error", "max_first_ratio_error")


def without_effect(settings: Section) -> dict[str, str]:
    """Keys of a stage's settings that change nothing, and why; a section's name stands for all keys in it.

    They are those that no computation reads, and those whose every value gives the same numbers up to rounding.
    """
    if isinstance(settings, PpoSettings):
        return dict(_ppo(settings))
    return dict(_supervised(settings)) if isinstance(settings, SupervisedSettings) else {}


def _supervised(settings: SupervisedSettings) -> Reasons:
    yield from _optimization(settings, has_head=isinstance(settings, RewardSettings))
    patience, epochs = settings.early_stopping_patience, settings.num_train_epochs
    if patience is not None and not settings.eval_interval and patience >= epochs:
        yield (
            "early_stopping_patience",
            f"eval_interval is 0: there is an evaluation before the first and after each of {epochs} epoch(s), so "
            f"{patience} in a row without gain are there at the end at the earliest",
        )


def _optimization(optimization: Optimization, has_head: bool, prefix: str = "") -> Reasons:
    """Of one model; the head of a reward or value model trains at `learning_rate` beside the adapters."""
    if optimization.lora_dim == 0:
        yield from ((f"{prefix}{key}", "lora_dim is 0: there are no adapters") for key in LORA_KEYS)
    elif optimization.only_optimize_lora and not has_head:
        yield f"{prefix}learning_rate", "only_optimize_lora: all that trains are adapters, at lora_learning_rate"
    if optimization.lr_scheduler_type == "constant":
        yield f"{prefix}num_warmup_steps", "lr_scheduler_type constant has no warm-up; constant_with_warmup has one"


def _ppo(settings: PpoSettings) -> Reasons:
    yield from _optimization(settings.actor, has_head=False, prefix="actor.")
    estimator = settings.advantage_estimator
    if estimator == "gae":
        yield from _optimization(settings.critic, has_head=True, prefix="critic.")
    else:
        yield from ((key, f"advantage_estimator {estimator} has no value model and no discount") for key in VALUE_KEYS)
        if settings.whiten_advantages:
            yield "whiten_rewards", f"{estimator} with whiten_advantages: the scale of rewards is divided out again"
    if settings.iterations is not None:
        yield "num_train_epochs", "iterations says how long it takes"
    if settings.kl_coefficient == 0:
        yield from ((key, "kl_coefficient is 0: there is no penalty") for key in ("kl_estimator", "kl_in"))
    if settings.kl_target is None:
        yield "kl_horizon", "kl_target is unset: kl_coefficient stays as it is"
    if settings.ptx_coefficient == 0:
        yield "ptx_rows_per_step", "ptx_coefficient is 0: no SFT rows are mixed in"
    if settings.dtype != "fp32":
        yield from ((key, f"dtype is {settings.dtype}, and this limit is for fp32") for key in FP32_LIMITS)
    elif settings.ppo_epochs == settings.minibatches == 1:
        # In half precision rounding moves ratios away from 1, by more than a clip range where a logit is large.
        reason = "ppo_epochs and minibatches are 1: a rollout gives one step, before which nothing has moved"
        yield from ((key, reason) for key in ("clip_range", "value_clip_range"))


def experiment_without_effect(settings: ExperimentSettings, own_splits: bool) -> dict[str, str]:
    """Dotted keys of an experiment that change nothing, neither a result nor how a stage runs, and why.

    Args:
        settings: of the experiment.
        own_splits: every dataset has a `data_split` of its own.
    """
    found: dict[str, str] = {}
    for name in settings.phases:
        section = getattr(settings, name)
        reasons = without_effect(section) | dict(_execution(section))
        found |= {f"{name}.{key}": reason for key, reason in reasons.items()}
    if own_splits:
        found["data_split"] = "every dataset of data_path has a data_split of its own"
    if settings.memory.gpu is None and settings.memory.gpu_memory_gib is None:
        found["memory.on_misfit"] = "memory.gpu is unset: nothing is judged"
    return found


def _execution(section: SftSection | RewardSection | PpoSection) -> Reasons:
    execution = section.execution
    if execution.gpus_per_node == 0:
        yield "execution.gpu_type", "gpus_per_node is 0: the stage runs on the CPU"
    if not isinstance(section, PpoSection):
        return
    if section.advantage_estimator != "gae":
        reason = f"advantage_estimator {section.advantage_estimator} has no value model"
        yield "execution.critic_gradient_checkpointing", reason
    if section.adapters_off:
        yield "execution.offload_reference_model", "the reference is the policy with its adapters off"
    elif not section.actor.trains_adapters_alone and section.execution.reference == "separate":
        yield "execution.reference", "more than adapters trains: the reference is a model of its own anyway"


class Written:
    """The keys that experiments are given, by the place where each is written, and whether any run uses them."""

    def __init__(self) -> None:
        self._reasons: dict[str, str | None] = {}

    def add(
        self,
        layers: dict[str, dict[str, Any]],
        settings: ExperimentSettings,
        unused: dict[str, str],
    ) -> None:
        """Note the keys of one run.

        Args:
            layers: place -> the keys written there, the place that wins first.
            settings: of the run, everything merged in.
            unused: dotted key or section that has no effect in it -> why.
        """
        origins: dict[str, str] = {}
        for place, given in layers.items():
            for key in dotted({name: value for name, value in given.items() if name != "sweep"}):
                origins.setdefault(key, f"{place}.{key}")
        unread = set(PHASES) - set(settings.phases)
        for key, origin in origins.items():
            if key.partition(".")[0] in unread:
                continue
            reason = next((unused[part] for part in _prefixes(key) if part in unused), None)
            if reason is None or _misleads(settings, key):
                self.note(origin, reason)

    def note(self, place: str, reason: str | None) -> None:
        """Note why the key that is written at a place has no effect in a run; None: it has one."""
        self._reasons[place] = reason if self._reasons.get(place, "") is not None else None

    def require_effect(self) -> None:
        """Refuse keys that no run uses.

        Raises:
            UserError: naming each of them, and why it changes nothing.
        """
        found = [f"{key}: it has no effect ({reason}); leave it out" for key, reason in self._reasons.items() if reason]
        if found:
            raise UserError("\n  ".join(found))


def leave_out(given: dict[str, Any], unused: dict[str, str]) -> dict[str, str]:
    """Remove keys without effect from a nested dictionary; returns those of `unused` that were there."""
    removed = {}
    for key, reason in unused.items():
        *parents, last = key.split(".")
        section = given
        for parent in parents:
            section = section.get(parent, {})
        if last in section:
            del section[last]
            removed[key] = reason
    return removed


def _prefixes(key: str) -> list[str]:
    """A dotted key and the sections that it is in."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _misleads(settings: ExperimentSettings, key: str) -> bool:
    """Whether the value of a key without effect says more than its default, or than what happens anyway."""
    own: Any = settings
    default: Any = ExperimentSettings()
    for part in key.split("."):
        own, default = getattr(own, part), getattr(default, part)
    return own not in (default, TRUE_ANYWAY.get(key.rpartition(".")[2], default))
