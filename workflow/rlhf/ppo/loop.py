"""Phase 3: PPO of the SFT model against the reward model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import numpy as np
from transformers import PreTrainedModel

from rlhf.data.batching import MicroBatch
from rlhf.data.corpus import Corpus
from rlhf.ppo.checks import require_same_distribution, sampling_error
from rlhf.ppo.experience import Judge, judge_samples, make_experience, rollout_metrics
from rlhf.ppo.models import PpoModels, load_models, require_one_tokenizer
from rlhf.ppo.rollout import Samples, Scores, generate, reference_scores
from rlhf.ppo.update import minibatches, update
from rlhf.runtime.logging import get_logger
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import device
from rlhf.training.stage import Stage

logger = get_logger(__name__)


class Ppo:
    """One PPO run.

    Args:
        stage: specification and paths.
        models: the four models.
        prompts: training prompts.
        iterations: rollouts.
        judge: gold reward of (prompt, answer, finished), logged for each rollout; never trained on. None where the
            experiment defines none.
    """

    def __init__(
        self, stage: Stage, models: PpoModels, prompts: Corpus, iterations: int, judge: Judge | None = None
    ) -> None:
        self._stage, self._settings, self._execution = stage, stage.settings, stage.execution
        self._models, self._prompts, self._judge = models, prompts, judge
        self._iterations = iterations
        self._order = prompt_order(len(prompts), stage.seed)
        self._tokens = 0
        self._start = time.monotonic()

    def run(self) -> None:
        """All iterations; each is one line of the metrics."""
        with self._stage.metrics(self._iterations) as metrics:
            for iteration in range(self._iterations):
                metrics.record(iteration + 1, "train", **self.iteration(iteration))

    def iteration(self, iteration: int) -> dict[str, float]:
        """Rollout, scoring and training; returns the metrics.

        Raises:
            UserError: sampling and training disagree, or the first ratio is not 1.
        """
        settings, seed = self._settings, self._stage.seed
        with _timed() as generating, self._stage.memory.phase("generate"):
            samples = self._rollout(iteration)
        partitions = [
            minibatches(
                samples,
                settings,
                self._execution["per_device_training_batch_size"],
                derive_seed(seed, "minibatches", iteration, epoch),
            )
            for epoch in range(settings["ppo_epochs"])
        ]
        with _timed() as scoring, self._stage.memory.phase("score"):
            scores = self._score(samples, partitions[0])
        experience = make_experience(samples, scores, settings)
        error = sampling_error(samples.answers, scores.logprobs, experience.mask)
        require_same_distribution(error, settings["dtype"], settings["max_sampling_logprob_error"])
        rates = {
            "learning_rate": self._models.actor.learning_rate(),
            "critic_learning_rate": self._models.critic.learning_rate(),
        }
        with _timed() as training, self._stage.memory.phase("train"):
            pad_id = self._prompts.pad_token_id
            statistics = update(self._models.actor, self._models.critic, experience, partitions, settings, pad_id)
        self._tokens += int(samples.lengths.sum())
        return {
            **rollout_metrics(experience),
            **self._gold(samples),
            **statistics.metrics(),
            **rates,
            "kl_coefficient": settings["kl_coefficient"],
            "sampling_logprob_error": error[0],
            "time_generate": generating.seconds,
            "time_score": scoring.seconds,
            "time_train": training.seconds,
            "tokens": self._tokens,
            "tokens_per_second": self._tokens / (time.monotonic() - self._start),
        }

    def _rollout(self, iteration: int) -> Samples:
        settings = self._settings
        rows = [next(self._order) for _ in range(settings["prompts_per_rollout"])]
        seeds = [derive_seed(self._stage.seed, "rollout", iteration, place) for place in range(len(rows))]
        with self._models.actor.evaluation(), generation_mode(self._models.policy):
            return generate(
                self._models.policy,
                [self._prompts.prompt(row) for row in rows],
                seeds,
                self._execution["per_device_generation_batch_size"],
                settings["max_answer_seq_len"],
                settings["temperature"],
            )

    def _score(self, samples: Samples, partition: list[list[MicroBatch]]) -> Scores:
        models = self._models
        offloaded = [
            model
            for model, key in ((models.reference, "offload_reference_model"), (models.reward, "offload_reward_model"))
            if self._execution[key] and not isinstance(model, deepspeed.DeepSpeedEngine)
        ]
        for model in offloaded:
            model.to(device())
        with models.actor.evaluation(), models.critic.evaluation():
            scores = reference_scores(
                samples,
                [micro for shares in partition for micro in shares],
                models.actor.engine,
                models.reference,
                models.critic.engine,
                models.reward,
                self._prompts.pad_token_id,
                self._settings["temperature"],
            )
        for model in offloaded:
            model.to("cpu")
        return scores

    def _gold(self, samples: Samples) -> dict[str, float]:
        if self._judge is None:
            return {}
        return {"gold": float(np.mean(judge_samples(samples, self._models.tokenizer, self._judge)))}


def prompt_order(rows: int, seed: int) -> Iterator[int]:
    """Rows of all prompts in a new random order in each pass, without end."""
    epoch = 0
    while True:
        yield from np.random.default_rng(derive_seed(seed, "prompts", epoch)).permutation(rows).tolist()
        epoch += 1


@contextmanager
def generation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch gradient checkpointing off while generating: it excludes the KV cache."""
    checkpointing = model.is_activation_checkpointing
    if checkpointing:
        model.activation_checkpointing_disable()
    try:
        yield
    finally:
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def train_ppo(stage: Stage, sft: Path, reward: Path, judge: Judge | None = None) -> None:
    """Run the PPO stage.

    Args:
        stage: specification and paths.
        sft: model folder of phase 1.
        reward: model folder of phase 2.
        judge: gold reward, logged only.

    Raises:
        UserError: policy and reward model do not share a tokenizer, no prompt is short enough, or a check of
            `rlhf.ppo.checks` fails.
    """
    settings = stage.settings
    require_one_tokenizer(sft, reward)
    prompts = stage.paths.corpus("train", "ppo")
    total = len(prompts)
    fits = prompts.lengths("prompt") <= settings["max_prompt_seq_len"]
    dropped = prompts.keep(fits, f"ppo.max_prompt_seq_len: {settings['max_prompt_seq_len']}")
    logger.info("%d of %d prompts; %d are too long", len(prompts), total, dropped)
    iterations = settings["iterations"] or max(
        1, settings["num_train_epochs"] * len(prompts) // settings["prompts_per_rollout"]
    )
    with stage.memory.phase("load"):
        total_steps = iterations * settings["ppo_epochs"] * settings["minibatches"]
        models = load_models(stage, sft, reward, total_steps)
    Ppo(stage, models, prompts, iterations, judge).run()
    inputs = {"tokenizer": prompts.tokenizer_fingerprint}
    stage.finish(models.policy, models.adapted, models.tokenizer, inputs, rows={"train": len(prompts)})


@dataclass
class _Timer:
    seconds: float = 0.0


@contextmanager
def _timed() -> Iterator[_Timer]:
    timer, start = _Timer(), time.monotonic()
    yield timer
    timer.seconds = time.monotonic() - start
