"""Phase 3: PPO of the SFT model against the reward model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from rlhf.data.batching import shuffled_rows
from rlhf.data.corpus import Corpus
from rlhf.functions import Judge
from rlhf.ppo.checks import require_same_distribution, sampling_error
from rlhf.ppo.experience import judge_samples, make_experience, rollout_kl, rollout_metrics
from rlhf.ppo.kl import KlController
from rlhf.ppo.mix import PretrainingMix
from rlhf.ppo.models import PpoModels, load_models
from rlhf.ppo.prompts import keep_mixed, keep_prompts, planned_iterations, trained_iterations
from rlhf.ppo.rollout import generate
from rlhf.ppo.samples import Partition, Samples
from rlhf.ppo.scoring import score_samples
from rlhf.ppo.update import PpoUpdate
from rlhf.records.manifest import Facts
from rlhf.runtime.logging import get_logger
from rlhf.runtime.progress import StageMetrics
from rlhf.runtime.seeds import derive_seed
from rlhf.training.checkpoints import CheckpointPart
from rlhf.training.delivery import policy_delivery
from rlhf.training.faults import FaultCounter
from rlhf.training.recomputation import checkpoint_activations
from rlhf.training.stage import PpoStage
from rlhf.training.weights import WeightAverage

logger = get_logger(__name__)


class Ppo:
    """One PPO run.

    Args:
        stage: specification and paths.
        models: the models.
        prompts: training prompts.
        iterations: rollouts.
        mix: SFT rows mixed into the policy's steps, or None.
        average: of the policy's weights, or None.
        judge: gold reward of (prompt, answer, finished), logged for each rollout; never trained on. None where the
            experiment defines none.
    """

    def __init__(
        self,
        stage: PpoStage,
        models: PpoModels,
        prompts: Corpus,
        iterations: int,
        mix: PretrainingMix | None = None,
        average: WeightAverage | None = None,
        judge: Judge | None = None,
    ) -> None:
        settings = stage.settings
        self._stage, self._settings, self._execution = stage, settings, stage.execution
        self._models, self._prompts, self._judge = models, prompts, judge
        self._iterations = iterations
        self._mix, self._average = mix, average
        self._order = self._all_prompts()
        self._kl = KlController(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)
        faults = FaultCounter(stage.paths.state, settings.dtype, settings.on_nonfinite)
        self._update = PpoUpdate(models.actor, models.critic, settings, prompts.pad_token_id, faults, mix, average)
        self._iteration = self._tokens = 0

    def run(self) -> None:
        """All iterations; each is one line of the metrics. Goes on from a checkpoint where there is one.

        Raises:
            Interrupted: the stage was asked to stop, and has saved its state.
        """
        with self._stage.metrics(self._iterations) as metrics:
            checkpoints = self._stage.checkpoints(self._parts(metrics), **self._topology())
            self._go_on(checkpoints.restore())
            for iteration in range(self._iteration, self._iterations):
                checkpoints.boundary(self._state(iteration))
                measured = self.iteration(iteration, checkpoints.interrupt_point)
                speed = {"tokens": self._tokens, "tokens_per_second": self._tokens / metrics.elapsed}
                metrics.record(iteration + 1, "train", **measured, **speed)
            checkpoints.finish()
            metrics.require_complete(self._iterations)

    def data_facts(self) -> Facts:
        """What the manifest says of the rows that all iterations have used."""
        settings = self._settings
        drawn = self._iterations * settings.prompts_per_rollout
        rows = {"train": len(set(itertools.islice(self._all_prompts(), drawn)))}
        return {
            "rows": rows if self._mix is None else {**rows, "mixed": self._mix.rows_seen()},
            "rows_given": len(self._prompts),
            "rows_per_epoch": self._prompts.rows_per_epoch,
            "answers": drawn * settings.answers_per_prompt,
        }

    def _all_prompts(self) -> Iterator[int]:
        """Rows of the prompts in the order of the rollouts, without end."""
        return shuffled_rows(self._prompts, derive_seed(self._stage.seed, "prompts"))

    def _parts(self, metrics: StageMetrics) -> dict[str, CheckpointPart]:
        """What changes from one iteration to the next, and so must be in a checkpoint, beside what `_state` holds."""
        parts = {
            "actor": self._models.actor,
            "critic": self._models.critic,
            "average": self._average,
            "metrics": metrics,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _topology(self) -> dict[str, int]:
        execution = self._execution
        return {"actor_zero_stage": execution.actor_zero_stage, "critic_zero_stage": execution.critic_zero_stage}

    def _state(self, iteration: int) -> dict[str, Any]:
        state = {"step": iteration, "tokens": self._tokens, "kl_coefficient": self._kl.coefficient}
        return state | ({} if self._mix is None else {"mixed_batches": self._mix.drawn})

    def _go_on(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        self._iteration, self._tokens = state["step"], state["tokens"]
        self._kl.coefficient = state["kl_coefficient"]
        drawn = self._iteration * self._settings.prompts_per_rollout
        self._order = itertools.islice(self._order, drawn, None)
        if self._mix is not None:
            self._mix.skip(state["mixed_batches"])

    def iteration(self, iteration: int, interrupt_point: Callable[[], None] = lambda: None) -> dict[str, float]:
        """One iteration: rollout, scoring and training; returns its metrics.

        Args:
            iteration: its number, from 0.
            interrupt_point: called while the iteration can still be abandoned.

        Raises:
            UserError: sampling and training disagree, or the first ratio is not 1.
        """
        settings, memory = self._settings, self._stage.memory
        with _timed() as generating, memory.phase("generate"):
            rows = [next(self._order) for _ in range(settings.prompts_per_rollout)]
            samples = self._rollout(iteration, rows, interrupt_point)
        partition = self._partition(samples, iteration)
        with _timed() as scoring, memory.phase("score"), self._models.scoring() as scorers:
            scores = score_samples(samples, partition, scorers, settings.temperature, interrupt_point)
        experience = make_experience(samples, scores, settings, self._kl.coefficient)
        error = sampling_error(samples.answers, scores.logprobs, experience.mask)
        require_same_distribution(error, settings.dtype, settings.max_sampling_logprob_error)
        warm = iteration >= settings.critic_warmup_iterations
        rates = self._learning_rates(warm)
        with _timed() as training, memory.phase("train"):
            places = [self._prompts.place(row) for row in rows]
            statistics = self._update.run(experience, iteration + 1, places, train_policy=warm)
        self._kl.observe(rollout_kl(experience), len(samples))
        self._tokens += int(samples.lengths.sum())
        return {
            **rollout_metrics(experience),
            **self._gold(samples),
            **statistics.metrics(),
            **rates,
            "sampling_logprob_error": error.largest_logprob,
            "time_generate": generating.seconds,
            "time_score": scoring.seconds,
            "time_train": training.seconds,
        }

    def _rollout(self, iteration: int, prompts: list[int], interrupt_point: Callable[[], None]) -> Samples:
        settings = self._settings
        rows = [row for row in prompts for _ in range(settings.answers_per_prompt)]
        seeds = [derive_seed(self._stage.seed, "rollout", iteration, place) for place in range(len(rows))]
        with self._models.actor.evaluation(), generation_mode(self._models.policy):
            return generate(
                self._models.policy,
                [self._prompts.prompt(row) for row in rows],
                seeds,
                self._execution.per_device_generation_batch_size,
                settings.max_answer_seq_len,
                settings.temperature,
                interrupt_point,
                rows,
            )

    def _partition(self, samples: Samples, iteration: int) -> Partition:
        epochs = range(self._settings.ppo_epochs)
        seeds = [derive_seed(self._stage.seed, "minibatches", iteration, epoch) for epoch in epochs]
        return Partition.draw(samples, self._settings, self._execution.per_device_training_batch_size, seeds)

    def _learning_rates(self, train_policy: bool) -> dict[str, float]:
        rates = {"learning_rate": self._models.actor.learning_rate()} if train_policy else {}
        if self._models.critic is not None:
            rates["critic_learning_rate"] = self._models.critic.learning_rate()
        return rates

    def _gold(self, samples: Samples) -> dict[str, float]:
        if self._judge is None:
            return {}
        return {"gold": float(np.mean(judge_samples(samples, self._models.tokenizer, self._judge)))}


@contextmanager
def generation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Gradient checkpointing is off in the block: with it, models generate without a KV cache."""
    checkpointing = model.is_activation_checkpointing
    if checkpointing:
        model.activation_checkpointing_disable()
    try:
        yield
    finally:
        if checkpointing:
            checkpoint_activations(model)


def train_ppo(stage: PpoStage, sft: Path, reward: Path, judge: Judge | None = None) -> None:
    """Run the PPO stage. With `ema_decay`, the averaged policy is written to `model_ema/` too.

    Args:
        stage: specification and paths.
        sft: model folder of phase 1.
        reward: model folder of phase 2.
        judge: gold reward, logged only.

    Raises:
        UserError: a model folder is damaged, no prompt is short enough, the policy would never train, or a check of
            `rlhf.ppo.checks` fails.
    """
    settings = stage.settings
    prompts = stage.paths.corpus("train", "ppo", settings.data_weights)
    total = len(prompts)
    dropped = keep_prompts(prompts, settings.max_prompt_seq_len)
    logger.info("%d of %d prompts; %d are too long", len(prompts), total, dropped)
    iterations = planned_iterations(settings, prompts)
    trained = trained_iterations(iterations, settings.critic_warmup_iterations)
    with stage.memory.phase("load"):
        steps = settings.ppo_epochs * settings.minibatches
        models = load_models(stage, sft, reward, prompts, trained * steps, iterations * steps)
    decay = settings.ema_decay
    average = WeightAverage(models.policy, decay) if decay is not None else None
    ppo = Ppo(stage, models, prompts, iterations, _pretraining_mix(stage), average, judge)
    ppo.run()
    data = ppo.data_facts()
    delivery = policy_delivery(models.actor.module, settings.dtype, ended_prompts(prompts))
    if average is not None:
        with average.in_place():
            stage.save(models.policy, models.adapted, models.tokenizer, delivery, averaged=True, **data)
    inputs = {"tokenizer": prompts.tokenizer_fingerprint}
    trainers = {"actor": models.actor, "critic": models.critic}
    facts: Facts = {
        "training": {role: trainer.facts() for role, trainer in trainers.items() if trainer is not None},
        **data,
        "steps": {"planned": iterations, "done": iterations},
        "sampling": {  # no key for what would cut off the distribution
            "temperature": settings.temperature,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": settings.max_answer_seq_len,
        },
    }
    stage.finish(models.policy, models.adapted, models.tokenizer, delivery, inputs, **facts)


def ended_prompts(prompts: Corpus) -> Iterator[tuple[np.ndarray, int]]:
    """Questions to a delivered policy: ids of prompt and EOS, [length] int64, of which the first is context only."""
    for row in range(len(prompts)):
        yield np.append(prompts.prompt(row), prompts.eos_token_id), 1


def _pretraining_mix(stage: PpoStage) -> PretrainingMix | None:
    settings = stage.settings
    if settings.ptx_coefficient == 0:
        return None
    corpus = stage.paths.corpus("train", "sft", settings.data_weights)
    dropped = keep_mixed(corpus, settings)
    logger.info("SFT rows mixed in: %d; %d are too long", len(corpus), dropped)
    size = stage.execution.per_device_training_batch_size
    return PretrainingMix(corpus, settings.ptx_coefficient, settings.ptx_rows_per_step, size, stage.seed)


@dataclass
class _Timer:
    seconds: float = 0.0


@contextmanager
def _timed() -> Iterator[_Timer]:
    timer, start = _Timer(), time.monotonic()
    yield timer
    timer.seconds = time.monotonic() - start
