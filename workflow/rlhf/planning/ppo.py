"""Memory of the PPO stage, from dry runs of generation, scoring and both updates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig

from rlhf.config.stages import PpoExecution, PpoSettings, Role, adapters_off
from rlhf.memory.blueprint import Blueprint, EarlierAdapters
from rlhf.memory.dryrun import DryRun, Program
from rlhf.memory.parts import (
    BUFFERS,
    Part,
    Resident,
    dynamic,
    in_fp32,
    largest,
    load_part,
    save_part,
    static,
    training_parts,
)
from rlhf.memory.states import Engine
from rlhf.memory.tracker import CACHE
from rlhf.models.scores import answer_logits, token_entropy, token_logprobs
from rlhf.planning.rows import LongestRows
from rlhf.planning.supervised import Forecast, make_engine, micro_batch_shape, resident
from rlhf.planning.traces import Traces
from rlhf.ppo.losses import log_ratio, policy_loss, value_loss
from rlhf.ppo.samples import Rectangle, collate
from rlhf.ppo.scoring import answer_values
from rlhf.training.sft import AnswerLikelihood

PREFILL, DECODE, FIRST, LATER, SCORE = "prefill", "decode", "first micro-batch", "later micro-batch", "score"
STEPS = (PREFILL, DECODE)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Stage:
    settings: PpoSettings
    execution: PpoExecution
    traces: Traces

    def rectangle(self, rows: int) -> Rectangle:
        """Samples of the greatest lengths."""
        return longest_samples(rows, self.settings.max_prompt_seq_len, self.settings.max_answer_seq_len)

    @property
    def micro(self) -> tuple[int, int]:
        """(rows of a training micro-batch, micro-batches per step) of one process."""
        samples = self.settings.prompts_per_rollout * self.settings.answers_per_prompt
        size = self.execution.per_device_training_batch_size
        return micro_batch_shape(-(-samples // self.settings.minibatches), self.execution, size)


@dataclass(frozen=True)
class _Start:
    """A model that the stage loads, and the adapters merged into it."""

    config: PreTrainedConfig
    earlier: tuple[EarlierAdapters, ...]


def forecast_ppo(
    settings: PpoSettings,
    execution: PpoExecution,
    policy: PreTrainedConfig,
    reward: PreTrainedConfig,
    traces: Traces,
    earlier: dict[str, tuple[EarlierAdapters, ...]],
) -> Forecast:
    """Memory of one process of a PPO stage.

    A reward model of another vocabulary than the policy's has another tokenizer; the value model then starts from the
    policy.

    Args:
        settings: of the stage.
        execution: how it runs.
        policy: configuration of the SFT model.
        reward: configuration of the reward model.
        traces: dry runs of this stage.
        earlier: `policy` and `reward`: adapters merged into these models.
    """
    stage = _Stage(settings, execution, traces)
    sft, scorer = (_Start(config, earlier.get(role, ())) for role, config in (("policy", policy), ("reward", reward)))
    value = scorer if reward.vocab_size == policy.vocab_size else sft
    blueprints = {"policy": _trained(stage, "actor", sft, "lm"), "reward": _frozen(stage, scorer, "score")}
    if not adapters_off(settings, execution):
        blueprints["reference"] = _frozen(stage, sft, "lm")
    if settings.advantage_estimator == "gae":
        blueprints["value"] = _trained(stage, "critic", value, "score")
    models = [_resident(stage, role, blueprint) for role, blueprint in blueprints.items()]
    parts = [load_part(models), _generation(stage, models, blueprints["policy"]), _scoring(stage, models, blueprints)]
    for role in ("policy", "value"):
        if role in blueprints:
            parts += _update(stage, models, role, blueprints[role])
    asked = in_fp32(_scores(stage, "policy", blueprints["policy"]), stage.micro[0], models[0].engine.element)
    parts.append(save_part(models, "policy", asked))
    if settings.ema_decay is not None:
        own = models[0]
        for part in parts[1:]:
            partitioned = own.engine.zero_stage == 3
            part.add(
                "policy", BUFFERS, 4 * (own.engine.share(own.counts.trained) if partitioned else own.counts.trained)
            )
    return Forecast(parts, models, stage.micro[1] > 1)


def _trained(stage: _Stage, section: Role, start: _Start, head: str) -> Blueprint:
    checkpointing = stage.execution.gradient_checkpointing(section)
    dtype = stage.settings.dtype
    optimization = stage.settings.optimization(section)
    return Blueprint(start.config, head, dtype, optimization, checkpointing, f"ppo.{section}", start.earlier)


def _frozen(stage: _Stage, start: _Start, head: str) -> Blueprint:
    return Blueprint(start.config, head, stage.settings.dtype, None, earlier=start.earlier)


def _resident(stage: _Stage, role: str, blueprint: Blueprint) -> Resident:
    """A model as the stage keeps it; a frozen one is partitioned where its trained twin is under ZeRO-3."""
    settings, execution = stage.settings, stage.execution
    twin: Role = "actor" if role in ("policy", "reference") else "critic"
    zero_stage = execution.zero_stage(twin)
    engine = make_engine(settings.optimization(twin), execution, settings.dtype, zero_stage, stage.traces.cuda)
    if role in ("policy", "value"):
        return resident(role, blueprint, engine, stage.traces)
    offload = execution.offloads_frozen(twin)
    if zero_stage == 3:
        frozen = Engine(3, engine.dtype, engine.world_size, False, offload, max_live=engine.max_live, cuda=engine.cuda)
        return resident(role, blueprint, frozen, stage.traces)
    return resident(role, blueprint, Engine(0, engine.dtype, 1, cuda=engine.cuda), stage.traces, not offload)


def _generation(stage: _Stage, models: list[Resident], blueprint: Blueprint) -> Part:
    settings, execution = stage.settings, stage.execution
    prompts = settings.prompts_per_rollout * settings.answers_per_prompt
    rows, _ = micro_batch_shape(prompts, execution, execution.per_device_generation_batch_size)
    lengths = settings.max_prompt_seq_len, settings.max_answer_seq_len
    program = generation_program(rows, *lengths)
    # While generating, checkpointing is off.
    plain = replace(blueprint, checkpointing=False)
    places = stage.traces.places(plain, "generate", program, 1.0, rows, *lengths)
    parts = [
        dynamic(static("generate", name, models, "policy"), "policy", largest(places, name))
        for name in (PREFILL, DECODE)
    ]
    return max(parts, key=lambda part: part.total)


def _scoring(stage: _Stage, models: list[Resident], blueprints: dict[str, Blueprint]) -> Part:
    parts = []
    for role, blueprint in blueprints.items():
        part = static("score", role, models, role)
        for model in models:
            if not model.on_device and model.model != role:  # all come back from the host for this phase
                part.add(model.model, "weights", model.counts.whole)
        parts.append(dynamic(part, role, _scores(stage, role, blueprint)))
    return max(parts, key=lambda part: part.total)


def _scores(stage: _Stage, role: str, blueprint: Blueprint) -> dict[str, int]:
    """Bytes by kind while a model scores a micro-batch."""
    rows = stage.micro[0]
    program = scoring_program(stage.rectangle(rows), role, stage.settings.temperature)
    return largest(stage.traces.places(blueprint, f"score {role}", program, 1.0, rows), SCORE)


def _update(stage: _Stage, models: list[Resident], role: str, blueprint: Blueprint) -> list[Part]:
    rows, steps = stage.micro
    own = next(model for model in models if model.model == role)
    settings = stage.settings
    mixed = role == "policy" and settings.ptx_coefficient > 0
    program = update_program(stage.rectangle(rows), role, settings, steps > 1, rows if mixed else 0)
    share = own.engine.gradient_share
    places = stage.traces.places(blueprint, f"update {role}", program, share, rows, steps > 1, mixed)
    name = "actor" if role == "policy" else "critic"
    return training_parts(models, role, places, (f"{name} backward", f"{name} step"), (FIRST, LATER))


def generation_program(rows: int, prompt: int, answer: int) -> Program:
    """Generation at its largest instants: the pass over the prompts, and the last token of an answer, cache full."""

    def program(run: DryRun) -> None:
        run.model.eval()
        mask = torch.ones(rows, prompt + answer, dtype=torch.long)
        mask[:, 0] = 0  # without padding, no mask would be made
        with torch.no_grad():
            run.clock.start(PREFILL)
            cache = DynamicCache(config=run.model.config)
            _next_scores(run, cache, mask[:, :prompt], prompt)
            run.clock.start("between")
            cache = _filled_cache(run, cache, prompt + answer - 1)
            run.clock.start(DECODE)
            _next_scores(run, cache, mask, 1)

    return program


def _filled_cache(run: DryRun, like: DynamicCache, length: int) -> DynamicCache:
    """A cache with the layers and heads of another one, filled up to a length."""
    cache = DynamicCache(config=run.model.config)
    for index, layer in enumerate(like.layers):
        rows, heads, _, width = layer.keys.shape
        empty = layer.keys.new_empty(rows, heads, length, width)
        cache.update(empty, empty, index)
    _count_cache(run, cache)
    return cache


def _count_cache(run: DryRun, cache: DynamicCache) -> None:
    run.tracker.count([part for layer in cache.layers for part in (layer.keys, layer.values)], CACHE)


def _next_scores(run: DryRun, cache: DynamicCache, mask: Tensor, width: int) -> None:
    """One forward pass, and what sampling makes of its logits: fp32 scores, noise, their sum, a log-probability."""
    ids = torch.zeros(len(mask), width, dtype=torch.long)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    logits = run.model(**arguments, logits_to_keep=1).logits[:, -1]
    _count_cache(run, cache)
    scores = logits.float() / 1.0  # the temperature makes a copy, whatever it is
    noisy = scores - torch.log(-torch.log(torch.rand(scores.shape)))
    token_logprobs(scores, noisy.argmax(-1))


def longest_samples(rows: int, prompt: int, answer: int) -> Rectangle:
    """Samples of the greatest lengths; one lacks a token in the attention mask, or no mask would be made."""
    part = collate([np.zeros(prompt, np.int64)] * rows, [np.zeros(answer, np.int64)] * rows, 0, CPU)
    part.attention_mask[-1, -1] = 0
    return part


def scoring_program(part: Rectangle, role: str, temperature: float) -> Program:
    """What one model says about a micro-batch of samples."""

    def program(run: DryRun) -> None:
        run.model.eval()
        own = _counted(part)
        run.clock.start(SCORE)
        with torch.no_grad():
            if role == "reward":
                run.model(own.input_ids, own.attention_mask)
            elif role == "value":
                answer_values(run.model, own)
            else:
                logits = _answer_logits(run.model, own) / temperature
                own.logprobs(logits)
                if role == "policy":
                    own.table(token_entropy(logits))

    return program


def _counted(part: Rectangle) -> Rectangle:
    """A copy that the tracker has seen being made."""
    return Rectangle(*(tensor.clone() for tensor in vars(part).values()))


def _answer_logits(model: nn.Module, part: Rectangle) -> Tensor:
    """As the stage computes them, chosen by column: how many a mask chooses is a value, which a dry run has not."""
    return answer_logits(model, part.input_ids, part.attention_mask, part.predicting[: part.width])


def update_program(part: Rectangle, role: str, settings: PpoSettings, accumulates: bool, mixed_rows: int) -> Program:
    """One or two micro-batches of PPO, and one of the SFT loss where it is mixed in."""
    rows: Any = LongestRows(settings.max_prompt_seq_len, settings.max_answer_seq_len)

    def loss(run: DryRun) -> Tensor:
        own = _counted(part)
        table = torch.zeros(part.mask.shape)
        if role == "value":
            values = answer_values(run.model, own)
            return value_loss(values, table, table, own.mask, settings.value_clip_range)
        logits = _answer_logits(run.model, own)
        logprobs = own.logprobs(logits / settings.temperature)
        ratio = log_ratio(logprobs, table, own.mask).exp()
        return policy_loss(ratio, table, own.mask, settings.clip_range)

    def program(run: DryRun) -> None:
        for name in (FIRST, LATER) if accumulates or mixed_rows else (FIRST,):
            run.clock.start(name)
            if name == LATER and mixed_rows:
                value, _ = AnswerLikelihood().loss(run.model, rows, np.arange(mixed_rows))
            else:
                value = loss(run)
            value.backward()
            del value

    return program
