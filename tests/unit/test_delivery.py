"""The check that a delivered folder is the trained model: it sees what is lost, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf.errors import UserError
from rlhf.models.loading import DTYPES, load_policy, load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.saving import write_model
from rlhf.models.scores import TokenScorer
from rlhf.ppo.loop import ended_prompts
from rlhf.training.delivery import SEQUENCES, policy_delivery, reward_delivery
from rlhf.training.engine import EngineSettings, Trainer, partitioned_loading
from rlhf.training.reward import GroupPreference
from rlhf.training.sft import AnswerLikelihood
from rlhf.training.supervised import mean_loss
from rlhf.training.weights import computing_in_fp32, merged_adapters, plain_weights
from tests.unit.conftest import EVERY_FAMILY, ListCorpus, edit_json, edit_weights, make_model, save_random_model
from tests.unit.test_merged import lora, train

CPU = torch.device("cpu")


def write(model: Any, folder: Path, tokenizer: Path, lossy: Callable[[Tensor], Tensor] | None = None) -> Path:
    """Deliver a model; with `lossy`, as if weights were all there is, each of them changed by it."""
    weights, adapters = plain_weights(model, keep=True), merged_adapters(model, keep=True)
    if lossy is not None:
        weights, adapters = {name: lossy(value) for name, value in weights.items()}, {}
    write_model(model, weights, load_tokenizer(tokenizer), folder, "5GB", None, "card", adapters)
    return folder


def policy(folder: Path, dtype: str, size: float) -> Any:
    model = load_policy(folder, dtype, 0.0)
    add_lora(model, lora(folder, only_optimize_lora=True), "sft")
    return train(model, size=size)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_whole_model_passes_and_merging_in_half_precision_does_not(
    family_folder: Path, tmp_path: Path, list_corpus: ListCorpus, group: None, dtype: str
) -> None:
    """A change so small that the loss moves by less than a hundredth, as in a short or careful training."""
    model = policy(family_folder, dtype, size=1e-3)
    objective = AnswerLikelihood()
    delivery = policy_delivery(model, dtype, objective.questions(list_corpus))
    expected = delivery.expected()
    found = delivery.require_same(write(model, tmp_path / "model", family_folder), expected)
    assert found["difference"] == 0.0 and found["sequences"] == SEQUENCES
    with torch.no_grad():
        first = ListCorpus(SEQUENCES)
        loss = mean_loss(load_policy(tmp_path / "model", "fp32").eval(), objective, first, 4)["loss"]
    assert -found["trained"] == pytest.approx(loss, rel=1e-5)  # a mean over the same answer tokens
    rounded = write(model, tmp_path / "rounded", family_folder, lambda weight: weight.to(DTYPES[dtype]))
    with pytest.raises(UserError, match=r"rounded is not the trained model: loaded anew, its log-probability differs"):
        delivery.require_same(rounded, expected)


def test_a_reward_model_is_compared_by_its_normalised_scores(
    gpt2_folder: Path, tmp_path: Path, group_corpus: ListCorpus, group: None
) -> None:
    model = load_reward_backbone(gpt2_folder, "bf16", seed=3, dropout=0.0)
    add_lora(model, lora(gpt2_folder), "reward")
    scorer = TokenScorer(train(model), mean=0.5, std=0.25)
    model.config.reward_mean, model.config.reward_std = 0.5, 0.25
    delivery = reward_delivery(scorer, "bf16", GroupPreference().questions(group_corpus))
    expected = delivery.expected()
    ids = [np.concatenate([group_corpus.prompt(0), answer]) for answer in group_corpus.answers(0)]
    with torch.no_grad(), computing_in_fp32(model, CPU):
        alone = [float(model(torch.from_numpy(row)[None]).logits) for row in ids]
    np.testing.assert_allclose(expected[: len(ids)], (np.array(alone) - 0.5) / 0.25, rtol=1e-4)
    folder = write(model, tmp_path / "reward", gpt2_folder)
    found = delivery.require_same(folder, expected)
    assert found["difference"] < 1e-6 and found["sequences"] == SEQUENCES
    edit_json(folder / "config.json", reward_mean=0.51)
    with pytest.raises(UserError, match="its score differs by 4.00e-02"):
        delivery.require_same(folder, expected)


def damage(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["transformer.h.1.ln_1.weight"].mul_(1.1))


def test_what_is_damaged_on_the_way_is_seen(
    gpt2_folder: Path, tmp_path: Path, list_corpus: ListCorpus, group: None
) -> None:
    model = policy(gpt2_folder, "fp32", size=0.01)
    delivery = policy_delivery(model, "fp32", ended_prompts(list_corpus))
    expected = delivery.expected()
    folder = write(model, tmp_path / "model", gpt2_folder)
    assert delivery.require_same(folder, expected)["difference"] < 1e-5
    damage(folder)
    with pytest.raises(UserError, match="is not the trained model"):
        delivery.require_same(folder, expected)
    edit_weights(folder, lambda tensors: tensors["transformer.h.1.ln_1.weight"].fill_(float("nan")))
    with pytest.raises(UserError, match="is not the trained model"):
        delivery.require_same(folder, expected)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_check_works_on_every_engine_and_leaves_it_as_it_was(
    gpt2_folder: Path, tmp_path: Path, list_corpus: ListCorpus, group: None, zero_stage: int, dtype: str
) -> None:
    """Also in the middle of a training: the next steps are those that would have been made without it."""
    objective, weights = AnswerLikelihood(), []

    def mean_of_four(trainer: Trainer) -> torch.Tensor:
        return objective.loss(trainer.engine, list_corpus, np.arange(4))[0] / 20

    for checked in (True, False):
        settings = lora(gpt2_folder, learning_rate=1e-2, lora_learning_rate=1e-2, num_warmup_steps=0, dropout=0.0)
        partitioned = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
        engine = EngineSettings(zero_stage, dtype, 4, False, False, partitioned if zero_stage == 3 else {})
        model = load_policy(gpt2_folder, dtype, 0.0, partitioned_loading(settings, engine))
        torch.manual_seed(0)
        add_lora(model, settings, "sft")
        trainer = Trainer(model, settings, engine, 3)
        for number in range(3):
            trainer.step([partial(mean_of_four, trainer)])
            if checked and number < 2:
                delivery = policy_delivery(trainer.module, dtype, objective.questions(list_corpus))
                expected = delivery.expected()
                folder = write(model, tmp_path / str(number), gpt2_folder)
                assert delivery.require_same(folder, expected)["difference"] < 1e-5
                assert model.training
        weights.append(plain_weights(model, keep=True))
        trainer.engine.destroy()
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_family_computes_in_fp32_from_weights_in_half_precision(tmp_path: Path, family: str) -> None:
    """As with weights that are copied to fp32 as a whole; what a model computes from its configuration aside."""
    model_type, sizes = EVERY_FAMILY[family]
    save_random_model(tmp_path / "model", model_type, sizes, 50)
    model = load_policy(tmp_path / "model", "bf16", 0.0).eval()
    before = {name: (id(parameter), parameter.dtype) for name, parameter in model.named_parameters()}
    ids = torch.tensor([[3, 4, 5, 6, 7, 11, 9, 2]])
    with torch.no_grad():
        with computing_in_fp32(model, CPU):
            found = model(ids).logits
        assert {name: (id(parameter), parameter.dtype) for name, parameter in model.named_parameters()} == before
        half = model(ids).logits
        expected = model.float()(ids).logits
    assert found.dtype == torch.float32 and half.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_prompts_end_and_all_their_tokens_count(list_corpus: ListCorpus) -> None:
    for row, (ids, context) in enumerate(ended_prompts(list_corpus)):
        assert context == 1 and ids.tolist() == [*list_corpus.prompt(row).tolist(), 1]


@pytest.mark.parametrize(("loss_on", "counted"), [("completion", "answer"), ("all", "all")])
def test_questions_of_sft_count_what_its_loss_counts(list_corpus: ListCorpus, loss_on: str, counted: str) -> None:
    objective = AnswerLikelihood(loss_on)
    total = sum(len(ids) - context for ids, context in objective.questions(list_corpus))
    assert total == objective.count(list_corpus, np.arange(len(list_corpus)))


def test_a_check_needs_no_second_model_on_the_device(list_corpus: ListCorpus, tmp_path: Path, group: None) -> None:
    """Copies of one module at a time: seen by what is alive while the head, the last module, computes."""
    folder = make_model(tmp_path / "llama", "llama")
    model = load_policy(folder, "bf16", 0.0)
    copies: list[int] = []

    def count(_module: Any, _arguments: Any) -> None:
        copies.append(sum(isinstance(parameter, torch.nn.Parameter) for parameter in all_parameters(model)))

    with torch.no_grad(), computing_in_fp32(model, CPU):
        model.lm_head.register_forward_pre_hook(count)
        model(torch.tensor([[3, 4, 5]]))
    assert copies == [len(all_parameters(model)) - 1]  # all but the head's own are the model's


def all_parameters(model: Any) -> list[Tensor]:
    return [
        parameter for module in model.modules() for parameter in module._parameters.values() if parameter is not None
    ]
