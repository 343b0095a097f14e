"""Every option of PPO on the models of the small run, in this process."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from rlhf.config.compatibility import PRESETS
from rlhf.config.specification import PpoSpecification
from rlhf.data.questions import Question
from rlhf.errors import UserError
from rlhf.files import read_json, read_jsonl
from rlhf.models.loading import load_policy, load_reward, load_tokenizer
from rlhf.models.scores import TokenScorer
from rlhf.ppo.loop import train_ppo
from rlhf.ppo.reward import ReEncodedText, reward_scorer
from rlhf.ppo.rollout import generate
from rlhf.records.metrics import read_metrics
from rlhf.reporting.checks import check_metrics, require_hard
from rlhf.training.engine import Trainer
from rlhf.training.stage import StagePaths, TrainingStage
from tests.project import Project
from tests.specifications import specification_of

LORA = {"lora_dim": 4, "lora_module_name": "attn", "lora_learning_rate": 1e-2}


def ppo_spec(project: Project, **changes: dict[str, Any]) -> PpoSpecification:
    return specification_of(project.plan.stages["ppo", project.results("ppo").name], **changes)


def run(project: Project, output: Path, spec: PpoSpecification, reward: Path | None = None) -> list[dict[str, float]]:
    """The metrics of a PPO stage with this specification, which hold the hard inequalities."""
    upstream = spec.upstream
    paths = StagePaths(
        [project.folder / "results/tokens" / id for id in upstream.tokens],
        [project.folder / "results/split" / id / "rows" for id in upstream.split],
        output,
        output / "state",
    )
    output.mkdir()
    with TrainingStage(spec, paths) as stage:
        train_ppo(stage, project.results("sft") / "model", reward or project.results("reward") / "model")
    folders = {"ppo": output, "sft": project.results("sft"), "reward": project.results("reward")}
    metrics = {kind: read_metrics(folder / "metrics.jsonl") for kind, folder in folders.items()}
    require_hard(check_metrics(read_json(output / "manifest.json"), metrics), output.name)
    return read_jsonl(output / "metrics.jsonl")


@pytest.fixture
def variant(finished: Project, group: None, tmp_path: Path):
    """Runs the small PPO stage with changed settings."""

    def changed(
        actor: dict[str, Any] | None = None,
        reward: Path | None = None,
        execution: dict[str, Any] | None = None,
        **settings: Any,
    ):
        spec = ppo_spec(finished, settings=settings | {"actor": actor or {}}, execution=execution or {})
        return run(finished, tmp_path / f"run-{len(list(tmp_path.iterdir()))}", spec, reward)

    return changed


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_critic_free_estimators_need_no_value_model(variant, estimator):
    rows = variant(advantage_estimator=estimator, answers_per_prompt=4, prompts_per_rollout=4)
    assert len(rows) == 3
    for row in rows:
        assert not {"value_loss", "critic_grad_norm", "explained_variance", "critic_learning_rate"} & set(row)
        assert row["first_ratio_error"] == 0.0
        assert row["grad_norm"] > 0


def test_answers_of_a_prompt_differ(variant):
    """They have seeds of their own: the group's scores have a spread."""
    rows = variant(advantage_estimator="grpo", answers_per_prompt=16, prompts_per_rollout=1, minibatches=1)
    assert all(row["score_std"] > 0 for row in rows)


def test_the_reference_is_the_policy_with_its_adapters_off(variant):
    """One model less, the same numbers."""
    lora = LORA | {"only_optimize_lora": True}
    shared = variant(actor=lora, execution={"reference": "auto"})
    separate = variant(actor=lora, execution={"reference": "separate"})
    assert shared[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert shared[-1]["kl"] != 0.0
    for one, other in zip(shared, separate, strict=True):
        for name in ("kl", "score", "policy_loss", "value_loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


def test_kl_can_be_part_of_the_loss(variant):
    rows = variant(kl_in="loss", kl_estimator="k2", kl_coefficient=0.5)
    assert rows[0]["kl_loss"] >= 0
    assert "kl_loss" not in variant(kl_in="reward", kl_estimator="k3")[0]


def test_an_adaptive_coefficient_moves_towards_its_target(variant):
    rows = variant(kl_coefficient=0.1, kl_target=100.0, kl_horizon=32)
    factor = 1 - 0.2 * 16 / 32  # far below the target: the largest step, 16 answers in each rollout
    assert [row["kl_coefficient"] for row in rows] == pytest.approx([0.1, 0.1 * factor, 0.1 * factor**2])


def test_the_value_model_can_warm_up_first(variant, finished):
    rows = variant(critic_warmup_iterations=1)
    assert "policy_loss" not in rows[0] and rows[0]["value_loss"] > 0
    assert "policy_loss" in rows[1]
    assert rows[1]["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy of the second rollout is still the SFT model
    assert rows[2]["kl"] != pytest.approx(0.0, abs=1e-5)


def test_each_schedule_spans_the_steps_of_its_own_model(variant, monkeypatch):
    """A cosine reaches its end at a model's last step, also where the policy trains in two of three iterations only."""
    rates: dict[Trainer, list[float]] = {}
    original = Trainer.step

    def step(trainer, *arguments):
        rates.setdefault(trainer, []).append(trainer.learning_rate())
        return original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", step)
    rows = variant(critic_warmup_iterations=1)
    value, policy = rates.values()  # the value model steps first
    for found, total in ((value, 3 * 4), (policy, 2 * 4)):
        expected = [1e-3 * (1 + math.cos(math.pi * number / total)) / 2 for number in range(total)]
        assert found == pytest.approx(expected, rel=1e-6)
    assert [trainer.learning_rate() for trainer in rates] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert "learning_rate" not in rows[0] and "critic_learning_rate" in rows[0]
    assert [row["learning_rate"] for row in rows[1:]] == policy[::4]


def test_a_warm_up_of_all_iterations_is_refused_before_a_model_is_loaded(variant, monkeypatch):
    monkeypatch.setattr("rlhf.ppo.loop.load_models", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"critic_warmup_iterations: 40 of 12 iterations .* would never train"):
        variant(iterations=None, num_train_epochs=1, critic_warmup_iterations=40)


def test_half_precision_holds_the_inequalities_too(variant):
    rows = variant(dtype="bf16")
    assert max(row["sampling_logprob_error"] for row in rows) > 1e-4  # a bound for fp32 alone


def test_sft_rows_can_be_mixed_in(variant):
    mixed = variant(ptx_coefficient=1.0, ptx_rows_per_step=8)
    plain = variant()
    assert all(0 < row["ptx_loss"] < 2 * math.log(128) for row in mixed)
    assert "ptx_loss" not in plain[0]
    assert mixed[0]["score"] == plain[0]["score"]
    assert mixed[0]["grad_norm"] != plain[0]["grad_norm"]


def test_rewards_can_be_scaled_and_advantages_left_as_they_are(variant):
    scaled = variant(whiten_rewards=True, whiten_advantages=False)
    assert any(abs(row["advantage_mean"]) > 1e-4 for row in scaled)


def test_ppo_runs_with_the_formulas_of_deepspeed_chat(variant):
    preset = {key: value for key, value in PRESETS["deepspeed_chat"]["ppo"].items() if key not in ("actor", "critic")}
    plain, rows = variant(), variant(**preset)
    assert rows[0]["response_length"] == plain[0]["response_length"]  # the same samples
    assert rows[0]["score"] != pytest.approx(plain[0]["score"], abs=1e-3)  # read elsewhere, and not normalised
    assert any(abs(row["advantage_mean"]) > 1e-4 for row in rows)  # not whitened
    assert all(row["first_ratio_error"] <= 1e-6 for row in rows)


def scorer(folder: Path, policy_tokenizer: Any) -> Any:
    model = TokenScorer.normalised(load_reward(folder, "fp32", 0.0)).eval()
    row = {"prompt": "write a review of the car :", "own": None, "turns": None, "row": 0}
    prompts: Any = SimpleNamespace(has_own_templates=False, question=lambda _: Question(None, row, "", ""))
    return reward_scorer(model, 64, load_tokenizer(folder), policy_tokenizer, prompts)


def test_a_reward_model_with_another_tokenizer_reads_the_text(finished, group, tmp_path):
    """The same reward model by other ids scores the same text alike; special tokens are no text."""
    sft, reward = finished.results("sft") / "model", finished.results("reward") / "model"
    tokenizer = load_tokenizer(sft)
    prompts = [np.array(tokenizer("write a review of the car :")["input_ids"])] * 16
    samples = generate(load_policy(sft, "fp32", 0.0).eval(), prompts, range(16), 16, 12, 1.0, rows=range(16))
    rows = np.array([row for row, answer in enumerate(samples.answers) if not {0, 2} & set(answer.ids.tolist())])
    assert len(rows) > 4
    part = samples.rectangle(rows, tokenizer.pad_token_id, torch.device("cpu"))
    permuted = scorer(permute_tokens(reward, tmp_path / "permuted"), tokenizer)
    assert isinstance(permuted, ReEncodedText)
    with torch.no_grad():
        expected = scorer(reward, tokenizer)(samples, rows, part)
        assert torch.allclose(permuted(samples, rows, part), expected, atol=1e-4)


def test_ppo_runs_with_a_reward_model_of_another_tokenizer(variant, finished, tmp_path):
    rows = variant(reward=permute_tokens(finished.results("reward") / "model", tmp_path / "permuted"))
    assert all(row["value_loss"] > 0 for row in rows)  # the value model started from the policy


def permute_tokens(folder: Path, output: Path) -> Path:
    """A reward model that means the same by other ids: two words of its vocabulary are exchanged."""
    shutil.copytree(folder, output)
    tokenizer = json.loads((output / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (output / "tokenizer.json").write_text(json.dumps(tokenizer))
    weights = load_file(output / "model.safetensors")
    embedding = weights["transformer.wte.weight"]
    pair = [words["good"], words["bad"]]
    embedding[pair] = embedding[pair[::-1]].clone()
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    return output


def test_a_policy_trained_with_adapters_is_a_plain_model(variant, finished, tmp_path):
    """And its adapters on the SFT model are the same policy."""
    variant(actor=LORA)
    folder = next(tmp_path.glob("run-*/model"))
    policy = load_policy(folder, "fp32")
    base = load_policy(finished.results("sft") / "model", "fp32")
    adapted = PeftModel.from_pretrained(base, folder.parent / "adapter").merge_and_unload().state_dict()
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(adapted[name], value, rtol=1e-5, atol=1e-6)
    config = json.loads((folder.parent / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"results/sft/{finished.results('sft').name}/model"
    assert not any("lora" in name for name, _ in policy.named_parameters())
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())


def test_averaged_weights_are_saved_beside_the_last_ones(variant, finished, tmp_path):
    """With decay d over n steps the average is d^n first + (1 - d) sum of d^(n-k) step k: between the two policies."""
    variant(ema_decay=0.5, actor=LORA)
    (output,) = tmp_path.glob("run-*")
    last, average = (load_policy(output / name, "fp32").state_dict() for name in ("model", "model_ema"))
    first = load_policy(finished.results("sft") / "model", "fp32").state_dict()
    moved = max(float((last[name] - first[name]).abs().max()) for name in first)
    behind = max(float((last[name] - average[name]).abs().max()) for name in first)
    assert 0 < behind < moved
