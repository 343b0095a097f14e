"""Rows packed into sequences: the same losses, gradients and trained weights as one row after another."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf.config.specification import ResolvedDataset
from rlhf.data.dataset import cache_dataset
from rlhf.data.split import split_dataset
from rlhf.data.tokens import tokenize
from rlhf.errors import UserError
from rlhf.files import read_jsonl
from rlhf.models.loading import load_policy
from rlhf.training.sft import AnswerLikelihood, collate_packed, train_sft
from rlhf.training.stage import StagePaths, TrainingStage
from rlhf.training.supervised import mean_loss
from tests.specifications import specification

CAPACITY = 40


def gradients(model, corpus, objective) -> tuple[float, list[torch.Tensor]]:
    rows = np.arange(len(corpus))
    model.zero_grad()
    loss = objective.loss(model, corpus, rows)[0] / objective.count(corpus, rows)
    loss.backward()
    return float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters()]


def test_packed_rows_are_named_by_their_segments():
    pairs = [(np.array([5, 1, 7]), np.array([8, 1])), (np.array([4]), np.array([1])), (np.array([6]), np.array([9, 1]))]
    ids, segments, answer = collate_packed(pairs, pad_id=0, capacity=8)
    assert ids.tolist() == [[5, 1, 7, 8, 1, 6, 9, 1], [4, 1, 0, 0, 0, 0, 0, 0]]
    assert segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, -1, -1, -1, -1, -1, -1]]
    assert answer.int().tolist() == [[0, 0, 0, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_packing_changes_neither_loss_nor_gradients(family_folder, list_corpus, loss_on, group):
    model = load_policy(family_folder, "fp32").eval()
    plain, packed = AnswerLikelihood(loss_on), AnswerLikelihood(loss_on, CAPACITY)
    apart = gradients(model, list_corpus, plain)
    together = gradients(model, list_corpus, packed)
    assert together[0] == pytest.approx(apart[0], rel=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in apart[1])
    for a, b in zip(apart[1], together[1], strict=True):
        assert torch.allclose(a, b, atol=1e-5 * scale)
    with torch.no_grad():
        for size in (1, 2, 16):
            assert mean_loss(model, packed, list_corpus, size)["loss"] == pytest.approx(apart[0], rel=1e-5)


def test_the_loss_shows_whether_rows_are_read_as_one_text(family_folder, list_corpus):
    """So the test above can fail: a plain mask, or positions that run on, give another loss."""
    model = load_policy(family_folder, "fp32").eval()
    objective = AnswerLikelihood(capacity=CAPACITY)
    expected = gradients(model, list_corpus, objective)[0]
    forward = model.forward

    def one_text(input_ids, attention_mask, position_ids, use_cache):
        return forward(input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids)

    def running_positions(input_ids, attention_mask, position_ids, use_cache):
        running = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return forward(input_ids, attention_mask=attention_mask, position_ids=running)

    model.forward = one_text
    assert gradients(model, list_corpus, objective)[0] != pytest.approx(expected, rel=1e-4)
    model.forward = running_positions
    relative = family_folder.name == "llama"
    assert (gradients(model, list_corpus, objective)[0] == pytest.approx(expected, rel=1e-4)) == relative


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A small dataset of texts for the tokenizer of the tiny models."""
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)

    def text(low, high):
        return " ".join(f"w{number}" for number in generator.integers(3, 50, generator.integers(low, high)))

    lines = [json.dumps({"prompt": text(2, 8), "chosen": text(1, 9)}) for _ in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    settings = ResolvedDataset(source={"path": str(folder / "rows.jsonl"), "eval_share": 0.2}, turns=True)
    cache_dataset(settings, folder / "dataset", "datasets.rows")
    split_dataset(folder / "dataset", "1,0,0", 0, folder / "split")
    return folder


def run(rows, model, output, packing, chat_template=None) -> list[dict]:
    """A short SFT run; returns its metrics."""
    if not (output / "tokens").exists():
        tokenize(rows / "dataset", model, output / "tokens", chat_template=chat_template)
    settings = {
        "global_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "max_seq_len": CAPACITY,
        "dtype": "fp32",
        "dropout": 0.0,
        "data_weights": [1.5],
    }
    spec = specification("sft", settings, {"packing": packing, "per_device_train_batch_size": 2})
    paths = StagePaths([output / "tokens"], [rows / "split"], output / str(packing), output / f"state-{packing}")
    with TrainingStage(spec, paths) as stage:
        train_sft(stage, model)
    return list(read_jsonl(output / str(packing) / "metrics.jsonl"))


def test_a_stage_trains_the_same_with_packed_rows(rows, gpt2_folder, tmp_path, group):
    plain, packed = (run(rows, gpt2_folder, tmp_path, packing) for packing in (False, True))
    assert len(plain) == len(packed) == 3 + 2 * 6  # evaluations, and steps: 32 rows once and a half, 8 at a time
    for a, b in zip(plain, packed, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a.get("tokens") == b.get("tokens")
    assert plain[0]["loss"] != pytest.approx(plain[-1]["loss"], rel=1e-2)


def test_the_trained_model_keeps_the_chat_template(rows, gpt2_folder, tmp_path, group):
    template = "{% for m in messages %}w3 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w3{% endif %}"
    metrics = run(rows, gpt2_folder, tmp_path, True, template)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    saved = AutoTokenizer.from_pretrained(tmp_path / "True/model")
    assert saved.chat_template == template
    assert saved.apply_chat_template([{"role": "user", "content": "w9"}], tokenize=False) == "w3 w9 "


def test_a_family_that_cannot_keep_rows_apart_is_refused(rows, gpt2_folder, tmp_path, group):
    sizes = {"hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "pad_token_id": 0, "eos_token_id": 1}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **sizes)).save_pretrained(tmp_path / "bloom")
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(tmp_path / "bloom")
    with pytest.raises(UserError, match=r"sft\.execution\.packing: bloom cannot keep .* apart; set it to false"):
        run(rows, tmp_path / "bloom", tmp_path, True)
