"""The frame of a training stage: live metrics, memory, and outputs that appear when all is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.corpus import Corpus
from rlhf.memory.measure import MemoryMonitor, memory_report
from rlhf.models.lora import merged_weights
from rlhf.runtime.files import atomic_directory, write_json, write_text
from rlhf.runtime.logging import get_logger
from rlhf.runtime.manifest import code_hash, utc_now, write_manifest
from rlhf.runtime.progress import StageMetrics
from rlhf.runtime.seeds import seed_everything
from rlhf.training.distributed import all_gather, barrier, on_cpu, rank, world_size

logger = get_logger(__name__)


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


def read_spec(path: Path, execution: dict[str, Any]) -> dict[str, Any]:
    """The specification of a stage: its spec.yaml, and how it runs."""
    spec: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {**spec, "execution": execution}


class Stage:
    """What a training loop needs of its surroundings.

    Args:
        spec: the stage's specification.
        paths: where it reads and writes.
    """

    def __init__(self, spec: dict[str, Any], paths: StagePaths) -> None:
        self.spec, self.paths = spec, paths
        self.settings: dict[str, Any] = spec["settings"]
        self.execution: dict[str, Any] = spec["execution"]
        self.seed: int = spec["seed"]
        self.memory = MemoryMonitor(rank())
        self._started = utc_now()
        seed_everything(self.seed)
        logger.info("%s %s, code %s", spec["stage"], spec["id"], code_hash()[:15])
        for key, value in self.settings.items():
            logger.info("  %s: %s", key, value)

    @contextmanager
    def metrics(self, total_steps: int) -> Iterator[StageMetrics]:
        """The stage's metrics writer; rank 0 writes."""
        writer = StageMetrics(self.paths.state, self.spec["stage"], self.spec["id"], total_steps, enabled=rank() == 0)
        with writer:
            yield writer

    def finish(
        self,
        model: PreTrainedModel,
        adapted: Any,
        tokenizer: PreTrainedTokenizerBase,
        inputs: dict[str, str],
        **facts: Any,
    ) -> None:
        """Save the model and write memory.json, metrics.jsonl and, last, manifest.json.

        Args:
            model: trained Hugging Face model; its parameters may be partitioned by ZeRO-3.
            adapted: PEFT wrapper around it, or None.
            tokenizer: saved beside the weights.
            inputs: name -> fingerprint of what the stage read.
            facts: further entries of the manifest.
        """
        output = self.paths.output
        with self.memory.phase("save"):
            save_model(model, adapted, tokenizer, output / "model")
        processes = all_gather(self.memory.stop())
        if rank() == 0:
            write_json(output / "memory.json", memory_report(processes, "cpu" if on_cpu() else "cuda"))
            write_text(output / "metrics.jsonl", (self.paths.state / "metrics.jsonl").read_text())
            facts |= {
                "world_size": world_size(),
                "device": "cpu" if on_cpu() else "cuda",
                "dtype": self.settings["dtype"],
            }
            write_manifest(output, self._started, self.spec, inputs, **facts)
            shutil.rmtree(self.paths.state)
            logger.info("done: %s", output)
        barrier()


def save_model(model: PreTrainedModel, adapted: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain Hugging Face folder, whole or not at all: adapters merged, ZeRO-3 partitions gathered."""
    partitioned = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, enabled=bool(partitioned)):
        if rank() == 0:
            with atomic_directory(folder) as beside, merged_weights(model, adapted) as weights:
                model.save_pretrained(beside, state_dict=weights)
                tokenizer.save_pretrained(beside)
    barrier()
