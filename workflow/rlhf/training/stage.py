"""The frame of a training stage: its lease, checkpoints, live metrics, and outputs that appear when all is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.specification import (
    PlannedPpo,
    PlannedReward,
    PlannedSft,
    PlannedTraining,
    ResolvedPpo,
    ResolvedReward,
    ResolvedSft,
    SeededSpecification,
    TrainingSettings,
    TrainingUpstream,
)
from rlhf.data.tokens import are_chats
from rlhf.files import JsonObject, write_text
from rlhf.memory.measure import memory_report
from rlhf.models.card import model_card
from rlhf.models.loading import DTYPES
from rlhf.models.merged import MergedAdapters, half_precision_error
from rlhf.models.saving import sampling_config, write_adapter, write_model
from rlhf.records.manifest import CheckpointFacts, Facts, Merge
from rlhf.records.memory import ProcessMemory, write_memory
from rlhf.records.metrics import METRICS, read_metrics
from rlhf.runtime.finished import bring_back, set_aside
from rlhf.runtime.lineage import adapter_base, lineage
from rlhf.runtime.logging import get_logger
from rlhf.runtime.manifest import describe, seal, utc_now
from rlhf.runtime.progress import StageMetrics
from rlhf.training.checkpoints import CheckpointPart, Checkpoints
from rlhf.training.delivery import Delivery
from rlhf.training.distributed import all_gather, on_cpu, rank, together, world_size
from rlhf.training.job import Job, StagePaths
from rlhf.training.weights import adapter_weights, merged_adapters, plain_weights, with_inherited

logger = get_logger(__name__)

MERGE_ERROR = 0.05  # from which on it is said aloud that the model must not be loaded in half precision
SettingsT = TypeVar("SettingsT", bound=TrainingSettings, covariant=True)
ExecutionT = TypeVar("ExecutionT", bound=PlannedTraining, covariant=True)


class TrainingStage(Job[SettingsT, TrainingUpstream, ExecutionT], Generic[SettingsT, ExecutionT]):
    """What a training loop needs of its surroundings: those of a job, checkpoints, live metrics, and its outputs.

    Args:
        spec: the stage's specification.
        paths: where it reads and writes.
    """

    spec: SeededSpecification[SettingsT, TrainingUpstream, ExecutionT]

    def __init__(
        self,
        spec: SeededSpecification[SettingsT, TrainingUpstream, ExecutionT],
        paths: StagePaths,
    ) -> None:
        super().__init__(spec, paths)
        self.seed = spec.seed
        self._checkpoints: Checkpoints | None = None
        self._merge: dict[str, Merge] = {}  # of each model folder, for the manifest
        self._delivered: dict[str, JsonObject] = {}

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

    def checkpoints(self, parts: Mapping[str, CheckpointPart], **topology: Any) -> Checkpoints:
        """Checkpoints of this stage.

        Args:
            parts: name -> what has a state.
            topology: how the engines keep their state, beside the number of processes.
        """
        belongs = {"specification": self.fingerprint, "topology": {"processes": world_size(), **topology}}
        self._checkpoints = Checkpoints(
            self.paths.state / "checkpoints", belongs, parts, self.execution, self.interruption, self._lease
        )
        return self._checkpoints

    def finish(
        self,
        model: PreTrainedModel,
        adapted: Any,
        tokenizer: PreTrainedTokenizerBase,
        delivery: Delivery,
        inputs: dict[str, str],
        **facts: Unpack[Facts],
    ) -> None:
        """Save the model and its adapters, and write memory.json, metrics.jsonl and, last, manifest.json.

        Args:
            model: trained Hugging Face model; its parameters may be partitioned by ZeRO-3.
            adapted: PEFT wrapper around it, or None.
            tokenizer: saved beside the weights.
            delivery: what the saved model is asked.
            inputs: name -> fingerprint of what the stage read.
            facts: further entries of the manifest.

        Raises:
            UserError: what was saved is not the trained model.
        """
        with self.memory.phase("save"):
            self.save(model, adapted, tokenizer, delivery, **facts)
        processes = all_gather(self.memory.stop())
        with together():
            if rank() == 0:
                self._write_records(processes, inputs, facts)

    def _write_records(self, processes: list[ProcessMemory], inputs: dict[str, str], facts: Facts) -> None:
        """Write the records beside the model; the manifest comes last, because it has the hashes of all other files."""
        output = self.paths.output
        write_memory(output, memory_report(processes, "cpu" if on_cpu() else "cuda"))
        write_text(output / METRICS, (self.paths.state / METRICS).read_text())
        attempts: Facts = {"attempts": self._attempt.number, "checkpoints": self._checkpoint_facts()}
        if not on_cpu():
            attempts["devices"] = [process["device"] for process in processes]
        saved: Facts = {"delivered": self._delivered, "merge": self._merge}
        all_facts: Facts = {**self._facts(), **attempts, **saved, **facts}
        seal(output, self._started, self.spec, inputs, **all_facts)
        if not self.execution.keep_state:
            set_aside(output, self.paths.state)
        logger.info("done: %s", output)

    def _checkpoint_facts(self) -> CheckpointFacts:
        """What checkpoints cost the last attempt, and the step at which it went on from an earlier one's."""
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
        delivery: Delivery,
        averaged: bool = False,
        **facts: Unpack[Facts],
    ) -> None:
        """Write `model/` and, where there are adapters, `adapter/`: whole or not at all, and compared with the trained.

        Partitions of ZeRO-3 are gathered one by one; the first process holds the whole model in host memory, and the
        others nothing of it. They wait while it writes, however slow its disk is.

        Snakemake knows nothing of `adapter/` and `model_ema/`, because a declared output must exist in every stage of a
        rule; the manifest lists their hashes, and the next attempt of a failed stage replaces them.

        Args:
            model: trained Hugging Face model.
            adapted: PEFT wrapper around it, or None.
            tokenizer: saved beside the weights.
            delivery: what the saved model is asked.
            averaged: the weights are an average: written to `model_ema/`, without adapters.
            facts: as in `finish`.

        Raises:
            UserError: what was saved is not the trained model.
        """
        with together():
            if rank() == 0:
                self._lease.require()
        output, saving = self.paths.output, self.execution.saving
        settings = self.settings
        generation = None if isinstance(settings, ResolvedReward) else sampling_config(model, settings)
        has_adapter = adapted is not None and not averaged
        expected = delivery.expected()
        weights = plain_weights(model, keep=rank() == 0)
        merged = merged_adapters(model, keep=rank() == 0)
        trained = adapter_weights(model, keep=rank() == 0) if has_adapter else {}
        with together():
            if rank() == 0:
                folder, merged = output / ("model_ema" if averaged else "model"), with_inherited(model, merged)
                self._note_merge(folder, weights, merged)
                all_facts: Facts = {**self._facts(), **facts}
                manifest = describe(self.spec, {}, **all_facts)
                metrics = read_metrics(self.paths.state / METRICS)
                merge = self._merge.get(folder.name)
                chat = are_chats(self.paths.tokens)
                card = model_card(self.spec, manifest, metrics, saving.license, averaged, has_adapter, merge, chat)
                write_model(model, weights, tokenizer, folder, saving.max_shard_size, generation, card, merged)
                if has_adapter:
                    base, revision = adapter_base(manifest["lineage"]["base_model"])
                    write_adapter(model, trained, adapted, output / "adapter", base, revision)
                del weights, merged, trained  # the model that is loaded anew needs their place in host memory
                self._delivered[folder.name] = delivery.require_same(folder, expected)

    def _note_merge(self, folder: Path, weights: dict[str, Tensor], adapters: MergedAdapters) -> None:
        """Note what a model with merged adapters would lose to a loader that rounds it to the stage's precision."""
        dtype = self.settings.dtype
        if not adapters or dtype == "fp32":
            return
        error = half_precision_error(weights, adapters, DTYPES[dtype])
        self._merge[folder.name] = {"dtype": dtype, "error": error, "limit": MERGE_ERROR}
        if error is not None and error > MERGE_ERROR:
            logger.warning(
                "%s: load it in float32, as its config.json says: rounded to %s, its weights would be off by %.0f %% "
                "of the change that adapters made",
                folder,
                dtype,
                100 * error,
            )

    def _facts(self) -> Facts:
        """What the manifest says of every training stage."""
        return {
            "world_size": world_size(),
            "device": "cpu" if on_cpu() else "cuda",
            "dtype": self.settings.dtype,
            "lineage": lineage(self.spec.upstream),
        }


SftStage = TrainingStage[ResolvedSft, PlannedSft]
RewardStage = TrainingStage[ResolvedReward, PlannedReward]
SupervisedStage = TrainingStage[ResolvedSft | ResolvedReward, PlannedSft | PlannedReward]
PpoStage = TrainingStage[ResolvedPpo, PlannedPpo]
