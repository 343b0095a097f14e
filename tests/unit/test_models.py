"""Models and tokenizers: made or copied exactly, complete or refused, and saved without a trace of a failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, MambaConfig

from rlhf.config import Requirement
from rlhf.config.sources import ModelSettings
from rlhf.errors import UserError
from rlhf.models.cache import cache_model
from rlhf.models.loading import load_policy, load_reward, load_reward_backbone, load_tokenizer
from rlhf.runtime.files import read_json, sha256_tree
from tests.unit.conftest import make_model

TEXTS = ["a b c\n", "b c d e 😀", "a a <eos"]
ARCHITECTURE = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


def scratch(kind: str = "words", **changes: Any) -> dict[str, Any]:
    settings = {
        "source": "scratch",
        "architecture": ARCHITECTURE,
        "tokenizer": {"dataset": "texts", "kind": kind, "vocab_size": 300},
    }
    return ModelSettings(**(settings | changes)).model_dump()


def local(folder: Path, **changes: Any) -> dict[str, Any]:
    return ModelSettings(source={"path": str(folder)}, **changes).model_dump()


def refused(folder: Path, settings: dict[str, Any], **arguments: Any) -> str:
    """The message of a refusal that leaves nothing where the model would have been."""
    with pytest.raises(UserError) as error:
        cache_model(settings, folder / "cache/mine-12345678", "models.mine", **arguments)
    assert not (folder / "cache").exists() or not list((folder / "cache").iterdir())
    return str(error.value)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# From scratch


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_a_model_from_scratch_depends_on_seed_and_texts_only(tmp_path: Path, kind: str) -> None:
    cases = {"first": (0, TEXTS), "again": (0, TEXTS[::-1]), "other": (1, TEXTS)}
    trees = {}
    for name, (seed, texts) in cases.items():
        torch.rand(3)  # what was drawn before must not matter
        cache_model(scratch(kind, seed=seed), tmp_path / name, "models.mine", texts=texts)
        trees[name] = sha256_tree(tmp_path / name / "model")
    assert trees["first"] == trees["again"]
    assert {file for file in trees["first"] if trees["first"][file] != trees["other"][file]} == {"model.safetensors"}


def test_word_tokenizers_know_the_words_of_their_texts(tmp_path: Path) -> None:
    cache_model(scratch(), tmp_path / "cache", "models.mine", texts=TEXTS)
    tokenizer = load_tokenizer(tmp_path / "cache/model")
    assert set(tokenizer.get_vocab()) == {"<pad>", "<eos>", "<unk>", "a", "b", "c", "d", "e", "😀", "<eos"}
    assert tokenizer.decode(tokenizer("b zzz  a")["input_ids"]) == "b <unk> a"


def test_bpe_tokenizers_bring_any_text_back(tmp_path: Path) -> None:
    cache_model(scratch("bpe"), tmp_path / "cache", "models.mine", texts=TEXTS)
    tokenizer = load_tokenizer(tmp_path / "cache/model")
    for text in ("never seen", " two  spaces\n\ttab", "größer 😀", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 256 + 3 < len(tokenizer) <= 300


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_padding_end_and_unknown_are_three_tokens_that_the_model_knows(tmp_path: Path, kind: str) -> None:
    cache_model(scratch(kind), tmp_path / "cache", "models.mine", texts=TEXTS)
    tokenizer, model = load_tokenizer(tmp_path / "cache/model"), load_policy(tmp_path / "cache/model", "fp32")
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "nonsense"},
        {"model_type": "vit"},
        ARCHITECTURE | {"n_head": 3},
        ARCHITECTURE | {"activation_function": "nonsense"},
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(tmp_path: Path, architecture: dict[str, Any]) -> None:
    message = refused(tmp_path, scratch(architecture=architecture), texts=TEXTS)
    assert "models.mine.architecture: transformers cannot build it" in message


# From a folder


def test_a_local_folder_is_copied_with_its_facts(family_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "cache/mine"
    cache_model(local(family_folder), output, "models.mine")
    before, after = load_policy(family_folder, "fp32").state_dict(), load_policy(output / "model", "fp32").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    facts = read_json(output / "manifest.json")
    assert (facts["model_type"], facts["max_positions"], facts["vocabulary"]) == (family_folder.name, 64, 50)
    assert (facts["eos_token"], facts["pad_token"]) == ("<eos>", "<pad>")
    weights = load_file(output / "model/model.safetensors")  # tied weights are stored once, and counted once
    assert facts["parameters"] == sum(weight.numel() for weight in weights.values())
    assert facts["outputs"] == {f"model/{name}": digest for name, digest in sha256_tree(output / "model").items()}
    assert not list(output.rglob("*.bin"))


def test_a_folder_without_tokenizer_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    for file in gpt2_folder.glob("tokenizer*"):
        file.unlink()
    message = refused(tmp_path, local(gpt2_folder))
    assert f"models.mine.source.path: '{gpt2_folder}' has no tokenizer" in message
    assert "give a folder written by save_pretrained" in message


def test_pickled_weights_are_never_read(gpt2_folder: Path, tmp_path: Path) -> None:
    torch.save(load_file(gpt2_folder / "model.safetensors"), gpt2_folder / "pytorch_model.bin")
    (gpt2_folder / "model.safetensors").unlink()
    message = refused(tmp_path, local(gpt2_folder))
    assert "models.mine.source.path: no usable model" in message
    assert "with weights as safetensors" in message


def test_a_folder_that_lacks_a_weight_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    edit_weights(gpt2_folder, lambda tensors: tensors.pop("transformer.ln_f.bias"))
    message = refused(tmp_path, local(gpt2_folder))
    assert "models.mine.source.path" in message
    assert "lacks weights of a causal language model: transformer.ln_f.bias" in message


def test_a_folder_of_an_unknown_family_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    edit_json(gpt2_folder / "config.json", model_type="nonsense")
    message = refused(tmp_path, local(gpt2_folder))
    assert "models.mine.source.path: no usable model" in message
    assert "nonsense" in message


def test_what_experiments_ask_is_checked_before_anything_is_written(gpt2_folder: Path, tmp_path: Path) -> None:
    needed = [Requirement("experiments.x.sft.max_seq_len", positions=65)]
    message = refused(tmp_path, local(gpt2_folder), requirements=needed)
    assert "experiments.x.sft.max_seq_len: 65 tokens, but models.mine has 64 positions" in message


# Special tokens


@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
def test_a_special_token_outside_the_vocabulary_is_refused(gpt2_folder: Path, tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, local(gpt2_folder, **{key: "</s>"}))
    assert f"models.mine.{key}: '</s>' is not a token of this model's vocabulary of 50" in message


def test_padding_that_is_the_end_too_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    message = refused(tmp_path, local(gpt2_folder, pad_token="<eos>"))
    assert "models.mine.pad_token: '<eos>' is the EOS token too; choose another, or leave it unset" in message


def test_a_model_without_an_end_is_refused_until_one_is_named(gpt2_folder: Path, tmp_path: Path) -> None:
    edit_json(gpt2_folder / "tokenizer_config.json", eos_token=None)
    assert "name one of its tokens in models.mine.eos_token" in refused(tmp_path, local(gpt2_folder))
    cache_model(local(gpt2_folder, eos_token="w7", pad_token="w5"), tmp_path / "mine", "models.mine")
    tokenizer, config = load_tokenizer(tmp_path / "mine/model"), AutoConfig.from_pretrained(tmp_path / "mine/model")
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (7, 5, 50)
    assert (config.eos_token_id, config.pad_token_id, config.vocab_size) == (7, 5, 50)
    assert read_json(tmp_path / "mine/model/generation_config.json")["eos_token_id"] == 7


@pytest.mark.parametrize("pad_token", ["<eos>", None])
def test_padding_that_is_the_end_or_missing_becomes_a_new_token(
    family_folder: Path, tmp_path: Path, pad_token: str | None
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as in GPT-2 and Llama, no token is for padding
        file = family_folder / name
        file.write_text(file.read_text().replace("<pad>", "w0"))
    edit_json(family_folder / "tokenizer_config.json", pad_token=pad_token)
    cache_model(local(family_folder), tmp_path / "mine", "models.mine")
    tokenizer = load_tokenizer(tmp_path / "mine/model")
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.eos_token_id) == ("<pad>", 50, 1)
    before, after = load_policy(family_folder, "fp32").eval(), load_policy(tmp_path / "mine/model", "fp32").eval()
    assert after.config.pad_token_id == 50
    assert after.get_input_embeddings().num_embeddings == after.config.vocab_size == 51
    ids = torch.tensor([[1, 5, 49, 7]])
    with torch.no_grad():
        assert torch.equal(after(ids).logits[..., :50], before(ids).logits)


# Loading


def test_an_extra_weight_is_refused(gpt2_folder: Path) -> None:
    edit_weights(gpt2_folder, lambda tensors: tensors.update({"transformer.h.2.ln_1.bias": torch.zeros(32)}))
    for load in (lambda: load_policy(gpt2_folder, "fp32"), lambda: load_reward_backbone(gpt2_folder, "fp32", seed=0)):
        with pytest.raises(UserError, match=r"1 weight\(s\) unexpected, for example transformer\.h\.2\.ln_1\.bias"):
            load()


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_have_the_precision_that_was_asked_for(gpt2_folder: Path, dtype: str, expected: torch.dtype) -> None:
    for model in (load_policy(gpt2_folder, dtype), load_reward_backbone(gpt2_folder, dtype, seed=0)):
        assert {parameter.dtype for parameter in model.parameters()} == {expected}


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_no_dropout_survives_the_override(tmp_path: Path, family: str) -> None:
    """Judged by what the model does: OPT and Llama apply dropout without a module."""
    folder = make_model(tmp_path / family, family, dropout=0.5)
    ids = torch.arange(3, 19)[None]
    for dropout, same in ((None, False), (0.0, True), (0.3, False)):
        for model in (load_policy(folder, "fp32", dropout), load_reward_backbone(folder, "fp32", 0, dropout)):
            with torch.no_grad():
                body = model.train().base_model
                first, second = (body(ids).last_hidden_state for _ in range(2))
            assert torch.equal(first, second) == same


def test_a_checkpoints_generation_defaults_are_dropped(gpt2_folder: Path, tmp_path: Path) -> None:
    hints = {"do_sample": True, "top_k": 7, "top_p": 0.5, "temperature": 0.1, "repetition_penalty": 9.0}
    (gpt2_folder / "generation_config.json").write_text(json.dumps({**hints, "eos_token_id": 3, "max_length": 5}))
    model = load_policy(gpt2_folder, "fp32")
    generation = model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (1, 0)
    assert not {name for name, value in hints.items() if getattr(generation, name, None) == value}
    model.save_pretrained(tmp_path / "saved")
    assert not hints.keys() & read_json(tmp_path / "saved/generation_config.json").keys()


# Reward models


# Huang et al. 2024: 1 / sqrt(width + 1); OPT's head reads the narrower word embedding.
@pytest.mark.parametrize(("family", "width", "deviation"), [("opt", 16, 0.2425), ("llama", 32, 0.1741)])
def test_a_score_head_is_drawn_from_its_seed_with_deviation_by_width(
    tmp_path: Path, family: str, width: int, deviation: float
) -> None:
    folder = make_model(tmp_path / family, family)
    heads = [load_reward_backbone(folder, "fp32", seed).score.weight.detach() for seed in (*range(40), 0)]
    assert heads[0].shape == (1, width)
    assert torch.equal(heads[0], heads[-1])
    assert not torch.equal(heads[0], heads[1])
    drawn = torch.cat(heads[:-1])
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.08)
    assert abs(float(drawn.mean())) < deviation / 8


def test_a_trained_reward_model_needs_its_normalisation_and_its_head(gpt2_folder: Path, tmp_path: Path) -> None:
    model = load_reward_backbone(gpt2_folder, "fp32", seed=5)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"config\.json: reward_mean and reward_std are missing"):
        load_reward(tmp_path, "fp32")
    edit_json(tmp_path / "config.json", reward_mean=0.5, reward_std=2.0)
    loaded = load_reward(tmp_path, "fp32").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    edit_weights(tmp_path, lambda tensors: tensors.pop("score.weight"))
    with pytest.raises(UserError, match=r"1 weight\(s\) missing, for example score\.weight"):
        load_reward(tmp_path, "fp32")


def test_families_that_cannot_score_are_refused(tmp_path: Path) -> None:
    MambaConfig(num_hidden_layers=1).save_pretrained(tmp_path / "mamba")
    with pytest.raises(UserError, match="mamba cannot be a reward model"):
        load_reward_backbone(tmp_path / "mamba", "fp32", seed=0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = BertConfig(**sizes, vocab_size=50, is_decoder=True)
    AutoModelForCausalLM.from_config(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="bert has no linear `score` head; choose a decoder family"):
        load_reward_backbone(tmp_path / "bert", "fp32", seed=0)
