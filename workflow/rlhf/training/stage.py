"""The frame of a training stage: its lease, checkpoints, live metrics, and outputs that appear when all is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.specification import (
    JobSpecification,
    PlannedPpo,
    PlannedReward,
    PlannedSft,
    PpoUpstream,
    ResolvedPpo,
    ResolvedReward,
    ResolvedSft,
    RewardUpstream,
    SftUpstream,
)
from rlhf.data.corpus import Corpus
from rlhf.memory.measure import MemoryMonitor, failure_report, memory_report
from rlhf.models.card import model_card
from rlhf.models.saving import sampling_config, write_adapter, write_model
from rlhf.runtime.attempts import Attempt
from rlhf.runtime.failure import OUT_OF_MEMORY, explain
from rlhf.runtime.files import read_jsonl, write_json, write_text
from rlhf.runtime.finished import bring_back, set_aside
from rlhf.runtime.interruption import Interruption, slurm_seconds_left
from rlhf.runtime.lease import StateLease
from rlhf.runtime.lineage import lineage
from rlhf.runtime.logging import get_logger
from rlhf.runtime.manifest import code_hash, describe, utc_now, write_manifest
from rlhf.runtime.progress import StageMetrics
from rlhf.runtime.seeds import seed_everything
from rlhf.runtime.starters import starters
from rlhf.training.checkpoints import Checkpoints, Part
from rlhf.training.distributed import all_gather, barrier, on_cpu, rank, together, world_size
from rlhf.training.weights import adapter_weights, plain_weights

logger = get_logger(__name__)

SettingsT = TypeVar("SettingsT", bound=ResolvedSft | ResolvedReward | ResolvedPpo, covariant=True)
ExecutionT = TypeVar("ExecutionT", bound=PlannedSft | PlannedReward | PlannedPpo, covariant=True)


@dataclass(frozen=True)
class StagePaths:
    """Where a training stage reads and writes."""

    tokens: list[Path]
    splits: list[Path]
    output: Path
    state: Path

    def corpus(self, split: str, phase: str, weights: list[float] | None = None) -> Corpus:
        """The rows of one split and phase; `weights`: how often an epoch sees those of each dataset."""
        return Corpus(self.tokens, self.splits, split, phase, weights)


class Stage(Generic[SettingsT, ExecutionT]):
    """What a training loop needs of its surroundings.

    Used as a context manager it holds the lease of its state folder, takes signals as requests to stop, and leaves a
    record of the attempt.

    Args:
        spec: the stage's specification.
        paths: where it reads and writes.
    """

    def __init__(
        self,
        spec: JobSpecification[SettingsT, SftUpstream | RewardUpstream | PpoUpstream, ExecutionT],
        paths: StagePaths,
    ) -> None:
        self.spec, self.paths = spec, paths
        self.settings, self.execution, self.seed = spec.settings, spec.execution, spec.seed
        self.memory = MemoryMonitor(rank(), None if on_cpu() else torch.cuda)
        self.interruption = Interruption(slurm_seconds_left(self.execution.runtime), starters())
        self._lease = StateLease(paths.state)
        self._attempt = Attempt(paths.state, rank())
        self._checkpoints: Checkpoints | None = None
        self._started = utc_now()
        self._surroundings = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            if rank() == 0:
                self._lease.acquire()
                stack.callback(self._lease.release)
                self._failed_memory.unlink(missing_ok=True)
            stack.enter_context(self._attempt)
            barrier()
            stack.enter_context(self.interruption.listening())
            self._surroundings = stack.pop_all()
        seed_everything(self.seed)
        logger.info("%s %s, code %s", self.spec.stage, self.spec.id, code_hash()[:15])
        for key, value in self.spec.identity()["settings"].items():
            logger.info("  %s: %s", key, value)
        for step in self.execution.memory_steps:
            logger.info("to fit the memory: %s", step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            process = self.memory.stop()
            if error is not None:
                self._record_memory(error, process)
        finally:
            self._surroundings.__exit__(kind, error, traceback)

    @property
    def _failed_memory(self) -> Path:
        return self.paths.state / "memory.json"

    def _record_memory(self, error: BaseException, process: dict[str, Any]) -> None:
        """Keep what was measured until memory ran out; the first process that fails is the one that tells."""
        found = explain(error)
        if found.cause in OUT_OF_MEMORY and not self._failed_memory.exists():
            device, message = "cpu" if on_cpu() else "cuda", str(error) or found.message
            report = failure_report(process, device, found.cause, self.memory.failed_phase, message)
            write_json(self._failed_memory, {"stage": self.spec.stage, "id": self.spec.id, **report})

    def was_finished(self) -> bool:
        """Whether an earlier attempt had finished the stage; its results are then back in their place."""
        with together():
            found = rank() == 0 and bring_back(self.paths.output, self.paths.state, self.spec)
        return bool(all_gather(found)[0])

    @contextmanager
    def metrics(self, total_steps: int) -> Iterator[StageMetrics]:
        """The stage's metrics writer; rank 0 writes."""
        writer = StageMetrics(self.paths.state, self.spec.stage, self.spec.id, total_steps, enabled=rank() == 0)
        with writer:
            yield writer

    def checkpoints(self, parts: Mapping[str, Part], **topology: Any) -> Checkpoints:
        """Checkpoints of this stage.

        Args:
            parts: name -> what has a state.
            topology: how the engines keep their state, beside the number of processes.
        """
        identity = self.spec.identity()
        content = {key: identity[key] for key in ("stage", "id", "seed", "settings", "upstream")}
        specification = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        belongs = {"specification": specification, "topology": {"processes": world_size(), **topology}}
        self._checkpoints = Checkpoints(
            self.paths.state / "checkpoints", belongs, parts, self.execution, self.interruption, self._lease
        )
        return self._checkpoints

    def finish(
        self,
        model: PreTrainedModel,
        adapted: Any,
        tokenizer: PreTrainedTokenizerBase,
        inputs: dict[str, str],
        **facts: Any,
    ) -> None:
        """Save the model and its adapters, and write memory.json, metrics.jsonl and, last, manifest.json.

        Args:
            model: trained Hugging Face model; its parameters may be partitioned by ZeRO-3.
            adapted: PEFT wrapper around it, or None.
            tokenizer: saved beside the weights.
            inputs: name -> fingerprint of what the stage read.
            facts: further entries of the manifest.
        """
        with self.memory.phase("save"):
            self.save(model, adapted, tokenizer, **facts)
        processes = all_gather(self.memory.stop())
        with together():
            if rank() == 0:
                self._write_records(processes, inputs, facts)

    def _write_records(self, processes: list[dict[str, Any]], inputs: dict[str, str], facts: dict[str, Any]) -> None:
        """What stands beside the model; the manifest, with the hashes of all files, is the last."""
        output = self.paths.output
        write_json(output / "memory.json", memory_report(processes, "cpu" if on_cpu() else "cuda"))
        write_text(output / "metrics.jsonl", (self.paths.state / "metrics.jsonl").read_text())
        attempts = {"attempts": self._attempt.number, "checkpoints": self._checkpoint_facts()}
        write_manifest(output, self._started, self.spec, inputs, **self._facts(), **attempts, **facts)
        if not self.execution.keep_state:
            set_aside(output, self.paths.state)
        logger.info("done: %s", output)

    def _checkpoint_facts(self) -> dict[str, Any]:
        """What checkpoints cost the last attempt, and where it went on."""
        if self._checkpoints is None:
            return {}
        cost = self._checkpoints.cost
        seconds = (utc_now() - self._started).total_seconds()
        return {
            "resumed_from_step": self._checkpoints.restored_step,
            "written": cost.written,
            "skipped": cost.skipped,
            "seconds": round(cost.seconds, 3),
            "share_of_time": round(cost.seconds / seconds, 4),
        }

    def save(
        self,
        model: PreTrainedModel,
        adapted: Any,
        tokenizer: PreTrainedTokenizerBase,
        averaged: bool = False,
        **facts: Any,
    ) -> None:
        """Write `model/` and, where there are adapters, `adapter/`: whole or not at all.

        Partitions of ZeRO-3 are gathered one by one; the first process holds the whole model in host memory, and the
        others nothing of it. They wait while it writes, however slow its disk is.

        Snakemake knows nothing of `adapter/` and `model_ema/`, because a declared output must exist in every stage of a
        rule; the manifest lists their hashes, and the next attempt of a failed stage replaces them.

        Args:
            model: trained Hugging Face model.
            adapted: PEFT wrapper around it, or None.
            tokenizer: saved beside the weights.
            averaged: the weights are an average: written to `model_ema/`, without adapters.
            facts: as in `finish`.
        """
        with together():
            if rank() == 0:
                self._lease.require()
        output, saving = self.paths.output, self.execution.saving
        settings = self.settings
        generation = None if isinstance(settings, ResolvedReward) else sampling_config(model, settings)
        has_adapter = adapted is not None and not averaged
        weights = plain_weights(model, keep=rank() == 0)
        adapters = adapter_weights(model, keep=rank() == 0) if has_adapter else {}
        with together():
            if rank() == 0:
                manifest = describe(self.spec, {}, **self._facts(), **facts)
                metrics = read_jsonl(self.paths.state / "metrics.jsonl")
                card = model_card(manifest, metrics, saving.license, averaged, has_adapter)
                folder = output / ("model_ema" if averaged else "model")
                write_model(model, weights, tokenizer, folder, saving.max_shard_size, generation, card)
                if has_adapter:
                    base = manifest["lineage"]["base_model"]["path"]
                    write_adapter(model, adapters, adapted, output / "adapter", base)

    def _facts(self) -> dict[str, Any]:
        """What the manifest says of every training stage."""
        return {
            "world_size": world_size(),
            "device": "cpu" if on_cpu() else "cuda",
            "dtype": self.settings.dtype,
            "lineage": lineage(self.spec.upstream),
        }


SftStage = Stage[ResolvedSft, PlannedSft]
RewardStage = Stage[ResolvedReward, PlannedReward]
SupervisedStage = Stage[ResolvedSft | ResolvedReward, PlannedSft | PlannedReward]
PpoStage = Stage[ResolvedPpo, PlannedPpo]
