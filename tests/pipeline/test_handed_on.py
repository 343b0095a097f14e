"""What a stage is handed is what the one before has trained: to the last bit, in bf16, with LoRA in every stage.

The models in memory answer before they are trained and when they are saved; the folders answer when they are loaded as
the next stage loads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from rlhf.errors import UserError
from rlhf.files import read_json, read_jsonl
from rlhf.models.loading import load_policy, load_reward, load_reward_backbone
from rlhf.models.merged import read_merged
from rlhf.models.scores import TokenScorer
from rlhf.runtime.seeds import derive_seed
from tests.pipeline.handing_on import Chain, merging_into_half_precision, says
from tests.project import Project
from tests.snakemake import ENVIRONMENT, ROOT, run_processes

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Handed:
    """A chain that has run."""

    chain: Chain
    said: dict[str, Tensor]  # by the models in memory

    @property
    def folder(self) -> Path:
        return self.chain.folder

    def policy(self, name: str) -> Tensor:
        """Logits of a delivered policy."""
        return says(load_policy(self.folder / name, "bf16", 0.0))


@pytest.fixture(scope="module")
def alone(finished: Project, group: None, tmp_path_factory: pytest.TempPathFactory) -> Handed:
    """The chain of one process, which is this one."""
    chain = Chain(finished, tmp_path_factory.mktemp("alone"), "one process")
    chain.run()
    return Handed(chain, chain.said)


@pytest.fixture(scope="module")
def by_two(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Handed:
    """The chain of two processes, with partitioned models."""
    folder, variant = tmp_path_factory.mktemp("two"), "two processes, ZeRO-3"
    program = ROOT / "tests/pipeline/handing_on.py"
    path = f"{ROOT}:{ENVIRONMENT.get('PYTHONPATH', '')}"
    run_processes(2, program, finished.folder, folder, variant, timeout=600, PYTHONPATH=path)
    return Handed(Chain(finished, folder, variant), load_file(folder / "said.safetensors"))


@pytest.fixture(params=["alone", "by_two"])
def handed(request: pytest.FixtureRequest) -> Handed:
    """Each chain in turn."""
    made: Handed = request.getfixturevalue(request.param)
    return made


def kl(policy: Tensor, reference: Tensor) -> float:
    """Mean KL of two policies at every position, in nats, from their logits; in float64."""
    ours, theirs = (logits.double().log_softmax(-1) for logits in (policy, reference))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def test_a_delivered_policy_says_what_the_trained_one_said(handed: Handed) -> None:
    for name in ("sft", "ppo"):
        assert torch.equal(handed.policy(f"{name}/model"), handed.said[name])
    base = says(load_policy(handed.chain.base, "bf16", 0.0))
    assert kl(handed.said["sft"], base) > 1e-4
    assert kl(handed.policy("ppo/model"), handed.policy("sft/model")) > 1e-6


def test_so_does_an_average(handed: Handed) -> None:
    average = handed.policy("ppo/model_ema")
    assert torch.equal(average, handed.said["ppo average"])
    assert not torch.equal(average, handed.said["ppo"]) and not torch.equal(average, handed.said["sft"])


def test_a_delivered_reward_model_scores_as_the_trained_one_did(handed: Handed) -> None:
    model = load_reward(handed.folder / "reward/model", "bf16", 0.0)
    assert torch.equal(says(TokenScorer.normalised(model)), handed.said["reward"])
    assert handed.said["reward"].std() > 0.1


def test_a_reward_model_begins_with_the_body_that_sft_has_trained(handed: Handed) -> None:
    """Its first scores are its head on the hidden states of the SFT model in memory."""
    head = load_reward_backbone(handed.folder / "sft/model", "bf16", derive_seed(1, "score head")).score.weight
    expected = F.linear(handed.said["sft hidden"], head).squeeze(-1).float()
    assert torch.equal(handed.said["reward at first"], expected)
    assert not torch.equal(handed.said["reward"], handed.said["reward at first"])


def test_ppo_begins_with_what_both_have_trained(handed: Handed) -> None:
    said = handed.said
    assert torch.equal(said["policy at first"], said["sft"])
    assert torch.equal(said["reference"], said["sft"])
    assert torch.equal(said["reward model in PPO"], said["reward"])
    assert torch.equal(said["value model at first"], said["reward"])
    assert read_jsonl(handed.folder / "ppo/metrics.jsonl")[0]["kl"] == 0.0


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_every_stage_has_seen_so_itself(handed: Handed, kind: str) -> None:
    manifest = read_json(handed.folder / kind / "manifest.json")
    folders = {"model", "model_ema"} if kind == "ppo" else {"model"}
    assert set(manifest["delivered"]) == set(manifest["merge"]) == folders
    assert all(found["difference"] == 0.0 for found in manifest["delivered"].values())
    assert all(found["error"] > 0 for found in manifest["merge"].values())
    generations = 1 if kind == "sft" else 2
    assert {len(changes) for changes in read_merged(handed.folder / kind / "model").values()} == {generations}


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_a_stage_that_merges_into_half_precision_fails(alone: Handed, kind: str) -> None:
    with merging_into_half_precision(), pytest.raises(UserError, match="is not the trained model: loaded anew, its"):
        alone.chain.train(kind, f"rounded-{kind}")
    assert not (alone.folder / f"rounded-{kind}/manifest.json").exists()


def test_it_fails_on_all_of_its_processes(by_two: Handed) -> None:
    assert read_json(by_two.folder / "sft/manifest.json")["world_size"] == 2
    first, second = (read_json(by_two.folder / f"refused-{rank}.json") for rank in range(2))
    assert "rounded/model is not the trained model: loaded anew, its log-probability differs" in first
    assert "process 0 has failed" in second and "is not the trained model" in second
