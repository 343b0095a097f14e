"""Every supported model family through all three stages: numbers, not only files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.config.expand import deep_merge
from rlhf.data.corpus import Corpus
from rlhf.files import read_json, read_jsonl
from rlhf.models.loading import DTYPES, load_policy, load_tokenizer
from rlhf.models.scores import TokenScorer, answer_logits, last_token, token_logprobs
from rlhf.ppo.loop import train_ppo
from rlhf.ppo.samples import collate
from rlhf.training.frame import EVALUATION_ROWS_SEED
from rlhf.training.reward import train_reward
from rlhf.training.sft import AnswerLikelihood, train_sft
from rlhf.training.stage import StagePaths, TrainingStage
from rlhf.training.supervised import mean_loss
from tests.project import Project
from tests.specifications import specification_of
from tests.unit.conftest import EVERY_FAMILY, save_random_model

# One part of the names of the attention's linear modules: Conv1D in GPT-2, one fused matrix in BLOOM and GPT-NeoX.
ADAPTED = {"bloom": "query_key_value", "gpt_neox": "query_key_value", "gpt2": "c_attn"}
RUNS = [(family, False, "fp32") for family in EVERY_FAMILY] + [
    (family, True, "fp32")
    for family in ("bloom", "gemma-3", "gpt2", "gpt_neox", "llama-3", "mistral", "opt-350m", "qwen2")
]
RUNS += [(family, True, "bf16") for family in ("gpt2", "llama-3", "opt")]
CPU = torch.device("cpu")


class Trained:
    """A random model of a family after SFT, reward training and PPO of a few steps each."""

    def __init__(self, project: Project, folder: Path, family: str, lora: bool, dtype: str) -> None:
        self._project, self.folder, self.dtype = project, folder, dtype
        self._lora = {"lora_dim": 4, "lora_module_name": ADAPTED.get(family, "_proj"), "lora_learning_rate": 1e-2}
        self._lora = self._lora | {"only_optimize_lora": True} if lora else {}
        tokenizer = load_tokenizer(project.results("sft") / "model")
        model_type, sizes = EVERY_FAMILY[family]
        save_random_model(folder / "base", model_type, sizes, len(tokenizer))
        tokenizer.save_pretrained(folder / "base")
        supervised = self._lora | {"global_batch_size": 48, "num_train_epochs": 1, "max_eval_rows": 24}
        checkpointing = {"gradient_checkpointing": True}
        train_sft(self._stage("sft", supervised | {"learning_rate": 5e-3}, checkpointing), folder / "base")
        train_reward(self._stage("reward", supervised, checkpointing), folder / "base")
        train_ppo(
            self._stage(
                "ppo",
                {"iterations": 2, "prompts_per_rollout": 8, "ppo_epochs": 1},
                {"actor_gradient_checkpointing": True, "critic_gradient_checkpointing": True},
            ),
            folder / "sft/model",
            folder / "reward/model",
        )

    def _stage(self, kind: str, settings: dict[str, Any], execution: dict[str, Any]) -> TrainingStage:
        stage = self._project.plan.stages[kind, self._project.results(kind).name]
        adapters = dict.fromkeys(("actor", "critic"), self._lora) if kind == "ppo" else {}
        precision = {"dtype": self.dtype}
        spec = specification_of(stage, deep_merge(settings | precision, adapters), execution)
        output = self.folder / kind
        output.mkdir()
        return TrainingStage(spec, self._paths(spec.upstream, output))

    def _paths(self, upstream: Any, output: Path) -> StagePaths:
        results = self._project.folder / "results"
        tokens = [results / "tokens" / id for id in upstream.tokens]
        splits = [results / "split" / id / "rows" for id in upstream.split]
        return StagePaths(tokens, splits, output, output / "state")

    def unseen(self) -> Corpus:
        """The rows that SFT was evaluated on."""
        stage = self._project.plan.of_kind("sft")[0]
        corpus = self._paths(stage.upstream, self.folder).corpus("eval", "sft")
        corpus.keep(np.isin(np.arange(len(corpus)), corpus.sample(24, EVALUATION_ROWS_SEED)), "test")
        return corpus

    def rows(self, kind: str, phase: str) -> list[dict[str, float]]:
        return [row for row in read_jsonl(self.folder / kind / "metrics.jsonl") if row["phase"] == phase]

    def manifest(self, kind: str) -> dict[str, Any]:
        return read_json(self.folder / kind / "manifest.json")


@pytest.fixture(
    scope="module",
    params=RUNS,
    ids=lambda run: run[0] + ("-lora" if run[1] else "") + ("-bf16" if run[2] == "bf16" else ""),
)
def trained(
    request: pytest.FixtureRequest, finished: Project, group: None, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Each family in turn."""
    return Trained(finished, tmp_path_factory.mktemp(request.param[0]), *request.param)


def load_alone(auto_class: Any, folder: Path) -> Any:
    """A saved model, read by transformers alone: no weight is missing or left over."""
    model, report = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def test_a_family_learns_and_is_saved_as_a_plain_model(trained: Trained) -> None:
    first, last = trained.rows("sft", "eval")
    assert last["loss"] < first["loss"]
    model = load_alone(AutoModelForCausalLM, trained.folder / "sft/model")
    with torch.no_grad():
        loss = mean_loss(model, AnswerLikelihood(), trained.unseen(), 5)["loss"]
    # Adapters merged, head tied or not; in bf16 the activations of training were rounded.
    assert loss == pytest.approx(last["loss"], rel=1e-4 if trained.dtype == "fp32" else 3e-3)


def test_a_phase_starts_from_what_the_one_before_has_trained(trained: Trained) -> None:
    """Loaded as PPO loads it, the SFT model has the last loss of its training: in bf16 to the last bit."""
    model = load_policy(trained.folder / "sft/model", trained.dtype, 0.0).eval()
    batch_size = trained.manifest("sft")["spec"]["execution"]["per_device_eval_batch_size"]
    with torch.no_grad():
        loss = mean_loss(model, AnswerLikelihood(), trained.unseen(), batch_size)["loss"]
    last = trained.rows("sft", "eval")[-1]["loss"]
    assert loss == (last if trained.dtype == "bf16" else pytest.approx(last, rel=1e-5))


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_every_stage_has_seen_that_it_delivers_what_it_trained(trained: Trained, kind: str) -> None:
    (found,) = trained.manifest(kind)["delivered"].values()
    assert found["difference"] <= (1e-5 if trained.dtype == "fp32" else 0.0) < found["limit"]
    assert found["quantity"] == ("score" if kind == "reward" else "log-probability")


@pytest.mark.parametrize("kind", ["sft", "reward", "ppo"])
def test_a_delivered_model_is_its_base_and_all_of_its_adapter(trained: Trained, kind: str) -> None:
    """Weights in float64, by no code of ours: base + B A; and the whole of it in the next phase's precision."""
    if not (trained.folder / kind / "adapter").exists():
        pytest.skip("no adapters")
    before = load_file(trained.folder / ("sft/model" if kind == "ppo" else "base") / "model.safetensors")
    after = load_file(trained.folder / kind / "model/model.safetensors")
    adapter = load_file(trained.folder / kind / "adapter/adapter_model.safetensors")
    change = kept = 0.0
    for name, a in adapter.items():
        if "lora_A" in name:
            delta = adapter[name.replace("lora_A", "lora_B")].double() @ a.double()
            weight = name.removeprefix("base_model.model.").replace("lora_A.", "")
            base = before[weight]
            if kind != "ppo":  # PPO starts from the merged weights, the others from rounded ones
                base = base.to(DTYPES[trained.dtype])
            left = after[weight].double() - base.double()
            left = left if left.shape == delta.shape and "gpt2" not in str(trained.folder) else left.T
            change, kept = change + float((delta**2).sum()), kept + float((delta * left).sum())
    assert 0.99 <= kept / change <= 1.01
    if trained.dtype == "bf16":
        assert trained.manifest(kind)["merge"]["model"]["dtype"] == "bf16"
        assert trained.manifest(kind)["merge"]["model"]["error"] > 0


def test_ppo_samples_what_it_trains(trained: Trained) -> None:
    first, second = trained.rows("ppo", "train")
    for row in (first, second):
        assert row["sampling_logprob_error"] <= (1e-4 if trained.dtype == "fp32" else 0.2)
        assert row["first_ratio_error"] <= 1e-6
        assert row["grad_norm"] > 0 and row["critic_grad_norm"] > 0
    assert abs(first["kl"]) < 1e-6  # no step has been taken
    assert abs(second["kl"]) > 1e-5  # one step has: a mean of signed differences, small where they cancel


def test_the_policy_does_not_see_padding(trained: Trained) -> None:
    policy = load_alone(AutoModelForCausalLM, trained.folder / "ppo/model")
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, 60, length) for length in (3, 9, 5)]
    answers = [generator.integers(3, 60, length) for length in (4, 2, 12)]
    part = collate(prompts, answers, 0, CPU)
    with torch.no_grad():
        together = part.table(token_logprobs(answer_logits(policy, *part.inputs), part.targets))
        for row, pair in enumerate(zip(prompts, answers, strict=True)):
            ids = torch.from_numpy(np.concatenate(pair))[None]
            alone = policy(ids).logits[0].double().log_softmax(-1)[len(pair[0]) - 1 : -1]
            expected = alone.gather(-1, torch.from_numpy(pair[1])[:, None])[:, 0]
            np.testing.assert_allclose(together[row, : len(pair[1])], expected, atol=1e-4)


def test_padded_scores_are_those_of_transformers_without_padding(trained: Trained) -> None:
    model = load_alone(AutoModelForSequenceClassification, trained.folder / "reward/model")
    generator = np.random.default_rng(1)
    texts = [generator.integers(3, 60, length) for length in (4, 17, 9)]
    part = collate([ids[:-2] for ids in texts], [ids[-2:] for ids in texts], 0, CPU)
    with torch.no_grad():
        padded = last_token(TokenScorer(model)(part.input_ids, part.attention_mask), part.attention_mask)
        alone = [float(model(torch.from_numpy(ids)[None]).logits) for ids in texts]
    np.testing.assert_allclose(padded, alone, atol=1e-4)
    assert np.ptp(alone) > 1e-2


def test_checkpointing_was_seen_to_work_in_every_stage(trained: Trained) -> None:
    for facts in (
        trained.manifest("sft"),
        trained.manifest("reward"),
        *trained.manifest("ppo")["training"].values(),
    ):
        assert facts["gradient_checkpointing_effective"] is True
