"""SFT, a reward model from it, and PPO from both, in bf16 with LoRA; and what models in memory say at each border.

Also a program, for several processes: `handing_on.py PROJECT OUTPUT VARIANT` under a launcher.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf.config.expand import deep_merge
from rlhf.errors import PeerFailed, UserError
from rlhf.files import write_json
from rlhf.models.lora import merged_weight
from rlhf.models.scores import TokenScorer
from rlhf.ppo import loop, models
from rlhf.ppo.loop import train_ppo
from rlhf.training import stage as stage_module
from rlhf.training import weights
from rlhf.training.distributed import processes, rank
from rlhf.training.reward import train_reward
from rlhf.training.sft import train_sft
from rlhf.training.stage import StagePaths, TrainingStage
from rlhf.training.supervised import SupervisedTraining
from tests.project import Project, tiny_config
from tests.specifications import specification_of

IDS = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(0))
LORA = {"lora_dim": 4, "lora_module_name": "h.", "lora_learning_rate": 1e-2, "only_optimize_lora": True}
SUPERVISED = {"dtype": "bf16", "num_train_epochs": 1, "global_batch_size": 48, "max_eval_rows": 24}
PPO = {"dtype": "bf16", "iterations": 2, "prompts_per_rollout": 8, "ppo_epochs": 1, "ema_decay": 0.5, "actor": LORA}
# DeepSpeed keeps small parameters whole under ZeRO-3, and all of these are small.
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
# Variant -> settings and execution of each stage.
VARIANTS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "one process": {
        "sft": (LORA, {}),
        "reward": (LORA, {}),
        # The reference is the policy with its adapters off; all weights of the value model train.
        "ppo": ({"critic": {"lora_dim": 0}}, {}),
    },
    "two processes, ZeRO-3": {
        "sft": (LORA | {"only_optimize_lora": False}, {"zero_stage": 3, "deepspeed_config": PARTITIONED}),
        "reward": (LORA, {"zero_stage": 3, "deepspeed_config": PARTITIONED}),
        "ppo": (
            {"critic": LORA},
            {"reference": "separate", "actor_zero_stage": 3, "critic_zero_stage": 3, "deepspeed_config": PARTITIONED},
        ),
    },
}
TRAIN = {"sft": train_sft, "reward": train_reward, "ppo": train_ppo}
UNTRAINED = "resources/models"


def says(model: nn.Module) -> Tensor:
    """A policy's logits, [4, 12, vocab], or the scores of a reward or value model, [4, 12]; in its own precision."""
    scores = isinstance(getattr(model, "module", model), TokenScorer)
    return _ask(model, lambda: model(IDS, torch.ones_like(IDS)) if scores else model(input_ids=IDS).logits)


def last_hidden(model: nn.Module) -> Tensor:
    """What a policy's output layer reads: [4, 12, width]."""
    return _ask(model, lambda: model(input_ids=IDS, output_hidden_states=True).hidden_states[-1])


def _ask(model: nn.Module, question: Callable[[], Tensor]) -> Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        answer = question().clone()
    model.train(training)
    return answer


class Chain:
    """The three stages of a variant.

    Args:
        project: has the data, and the model to begin with.
        folder: a folder for each stage.
        variant: key of `VARIANTS`.
    """

    def __init__(self, project: Project, folder: Path, variant: str) -> None:
        self._project, self.folder, self._variant = project, folder, variant
        self.said: dict[str, Tensor] = {}  # by models in memory: what -> answer of `says`
        self._kind = ""

    @property
    def base(self) -> Path:
        """The model that SFT begins with."""
        (folder,) = (self._project.folder / UNTRAINED).iterdir()
        return folder / "model"

    def train(self, kind: str, output: str) -> None:
        """Run a stage; the stages before it have run."""
        self._kind = kind
        begin = {"sft": [self.base], "reward": [self.folder / "sft/model"]}
        begin["ppo"] = [self.folder / "sft/model", self.folder / "reward/model"]
        with TrainingStage(self._spec(kind), self._paths(kind, self.folder / output)) as stage:
            TRAIN[kind](stage, *begin[kind])  # type: ignore[operator]

    def _spec(self, kind: str) -> Any:
        settings, execution = VARIANTS[self._variant][kind]
        settings = deep_merge(PPO if kind == "ppo" else SUPERVISED, settings)
        return specification_of(self._project.plan.of_kind(kind)[0], settings, execution)

    def _paths(self, kind: str, output: Path) -> StagePaths:
        upstream, results = self._project.plan.of_kind(kind)[0].upstream, self._project.folder / "results"
        tokens = [results / "tokens" / id for id in upstream.tokens]
        splits = [results / "split" / id / "rows" for id in upstream.split]
        return StagePaths(tokens, splits, output, output / "state")

    @contextmanager
    def overheard(self) -> Iterator[None]:
        """In the block, models answer before they are trained, and before they are saved."""
        run, save, load, scorer = SupervisedTraining.run, TrainingStage.save, loop.load_models, models.reward_scorer

        def begin(training: Any) -> Any:
            self.said[f"{self._kind} at first"] = says(training._trainer.module)
            return run(training)

        def end(stage: Any, model: Any, adapted: Any, tokenizer: Any, delivery: Any, **more: Any) -> None:
            name = f"{self._kind} average" if more.get("averaged") else self._kind
            self.said[name] = says(delivery.trained)
            if self._kind == "sft":
                self.said["sft hidden"] = last_hidden(delivery.trained)
            save(stage, model, adapted, tokenizer, delivery, **more)

        def loaded(*arguments: Any) -> models.PpoModels:
            found = load(*arguments)
            self.said["policy at first"] = says(found.actor.module)
            with nullcontext() if found.reference is not None else found.adapted.disable_adapter():
                self.said["reference"] = says(found.reference or found.actor.module)
            assert found.critic is not None
            self.said["value model at first"] = says(found.critic.module)
            return found

        def scoring(model: nn.Module, *arguments: Any) -> Any:
            self.said["reward model in PPO"] = says(model)
            return scorer(model, *arguments)

        with (
            mock.patch.object(SupervisedTraining, "run", begin),
            mock.patch.object(TrainingStage, "save", end),
            mock.patch.object(loop, "load_models", loaded),
            mock.patch.object(models, "reward_scorer", scoring),
        ):
            yield

    def run(self) -> None:
        """All three stages."""
        with self.overheard():
            for kind in TRAIN:
                self.train(kind, kind)


@contextmanager
def merging_into_half_precision() -> Iterator[None]:
    """In the block stages deliver as they once did: adapters are merged into bf16 weights, and nothing else is kept."""

    def rounded(layer: Any) -> Tensor:
        return merged_weight(layer).bfloat16()

    with (
        mock.patch.object(weights, "merged_weight", rounded),
        mock.patch.object(stage_module, "merged_adapters", lambda *_, **__: {}),
    ):
        yield


def main(project: Project, output: Path, variant: str) -> None:
    """Run a chain and write what was said, and how a stage ends on each process whose model is not what was trained."""
    with processes():
        chain = Chain(project, output, variant)
        chain.run()
        if rank() == 0:
            save_file({name: answer.contiguous() for name, answer in chain.said.items()}, output / "said.safetensors")
        with merging_into_half_precision():
            try:
                chain.train("sft", "rounded")
            except (UserError, PeerFailed) as error:
                write_json(output / f"refused-{rank()}.json", str(error))


if __name__ == "__main__":
    main(Project(Path(sys.argv[-3]), tiny_config()), Path(sys.argv[-2]), sys.argv[-1])
