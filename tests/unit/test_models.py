"""Models and tokenizers: made or copied exactly, complete or refused, and saved without a trace of a failure."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from rlhf.config import Requirement, dumped
from rlhf.config.sources import ModelSettings
from rlhf.config.specification import ResolvedModel, SftUpstream
from rlhf.errors import UserError
from rlhf.files import read_json, sha256_tree
from rlhf.models.cache import cache_model
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.runtime.lineage import adapter_base, lineage
from tests.unit.conftest import FAMILIES, edit_json, edit_weights, make_model, save_random_model

TEXTS = ["a b c\n", "b c d e 😀", "a a <eos"]
ARCHITECTURE = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


def scratch(kind: str = "words", **changes: Any) -> ModelSettings:
    settings = {
        "source": "scratch",
        "architecture": ARCHITECTURE,
        "tokenizer": {"kind": kind, "vocab_size": 300},
    }
    return ModelSettings(**(settings | changes))


def local(folder: Path, **changes: Any) -> ModelSettings:
    return ModelSettings(source={"path": str(folder)}, **changes)


def refused(folder: Path, settings: ModelSettings, **arguments: Any) -> str:
    """The message of a refusal that leaves nothing where the model would have been."""
    with pytest.raises(UserError) as error:
        cache_model(settings, folder / "cache/mine-12345678", "models.mine", **arguments)
    assert not (folder / "cache").exists() or not list((folder / "cache").iterdir())
    return str(error.value)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_the_commit_of_a_hubs_model_is_known(
    tmp_path: Path, gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    """The hub's client keeps what it has fetched by commit, and what a branch or tag stood for."""
    repository = tmp_path / "hub/models--org--model"
    shutil.copytree(gpt2_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    settings = ModelSettings(source={"hub": "org/model", "revision": revision})
    cache_model(settings, tmp_path / "resources/models/model-12345678", "models.mine")
    manifest = read_json(tmp_path / "resources/models/model-12345678/manifest.json")
    assert manifest["source"]["commit"] == COMMIT
    spec = tmp_path / "results/model/model-12345678/spec.yaml"
    spec.parent.mkdir(parents=True)
    resolved = ResolvedModel(source={"hub": "org/model", "revision": revision}, content=[])
    head = {"schema_version": 1, "stage": "model", "id": "model-12345678", "seed": None, "upstream": {}}
    spec.write_text(yaml.safe_dump({**head, "settings": dumped(resolved)}))
    base = lineage(SftUpstream(model="model-12345678", tokens=[], split=[]), tmp_path / "results")["base_model"]
    assert adapter_base(base) == ("org/model", COMMIT)


def test_a_local_model_has_no_commit(tmp_path: Path, gpt2_folder: Path) -> None:
    folder = tmp_path / "snapshots" / COMMIT  # as another client would keep it
    shutil.copytree(gpt2_folder, folder)
    cache_model(local(folder), tmp_path / "cache", "models.mine")
    assert read_json(tmp_path / "cache/manifest.json")["source"]["commit"] is None


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
        {"model_type": "vit"},
        ARCHITECTURE | {"n_head": 3},
        ARCHITECTURE | {"n_head": 0},
        ARCHITECTURE | {"n_embd": "big"},
        ARCHITECTURE | {"activation_function": "nonsense"},
        {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4},
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(tmp_path: Path, architecture: dict[str, Any]) -> None:
    message = refused(tmp_path, scratch(architecture=architecture), texts=TEXTS)
    assert "models.mine.architecture: transformers cannot build it" in message
    assert len(message) < 400


def test_a_misspelt_architecture_gets_the_nearest_name(tmp_path: Path) -> None:
    message = refused(tmp_path, scratch(architecture={"model_type": "gtp2"}), texts=TEXTS)
    assert "models.mine.architecture.model_type: 'gtp2' is unknown; did you mean 'gpt2'?" in message
    message = refused(tmp_path, scratch(architecture=ARCHITECTURE | {"n_layers": 1}), texts=TEXTS)
    assert "gpt2 has no key 'n_layers'; did you mean 'n_layer'?" in message


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


def test_ids_without_a_token_are_counted(gpt2_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache_model(local(gpt2_folder), tmp_path / "whole", "models.mine")
    assert "have no token" not in caplog.text
    save_random_model(gpt2_folder, "gpt2", FAMILIES["gpt2"], 64)  # 50 tokens
    cache_model(local(gpt2_folder), tmp_path / "padded", "models.mine")
    assert "models.mine: 14 of its 64 ids have no token" in caplog.text


def test_a_folder_without_tokenizer_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    for file in gpt2_folder.glob("tokenizer*"):
        file.unlink()
    message = refused(tmp_path, local(gpt2_folder))
    assert f"models.mine.source.path: '{gpt2_folder}' has no tokenizer" in message
    assert "give a folder written by save_pretrained" in message


@pytest.mark.parametrize("old_format", [False, True])
def test_pickled_weights_are_kept_as_safetensors(family_folder: Path, tmp_path: Path, old_format: bool) -> None:
    weights = load_file(family_folder / "model.safetensors")
    cache_model(local(family_folder), tmp_path / "expected", "models.mine")
    parts = [dict(list(weights.items())[:5]), dict(list(weights.items())[5:])]
    places = {}
    for number, part in enumerate(parts, start=1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(part, family_folder / file, _use_new_zipfile_serialization=not old_format)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (family_folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (family_folder / "model.safetensors").unlink()
    cache_model(local(family_folder), tmp_path / "mine", "models.mine")
    expected, found = (load_policy(tmp_path / name / "model", "fp32").state_dict() for name in ("expected", "mine"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    files = sorted(file.name for file in (tmp_path / "mine/model").glob("model*"))
    assert files == [*(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)), "model.safetensors.index.json"]
    assert not list((tmp_path / "mine").rglob("*.bin"))
    assert read_json(tmp_path / "mine/manifest.json")["source"]["weights"] == "pickled"


def test_the_stored_precision_is_kept_whatever_the_configuration_says(
    gpt2_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rlhf")
    edit_json(gpt2_folder / "config.json", dtype="float16")
    stored = load_file(gpt2_folder / "model.safetensors")
    cache_model(local(gpt2_folder), tmp_path / "mine", "models.mine")
    kept = load_file(tmp_path / "mine/model/model.safetensors")
    assert all(kept[name].dtype == torch.float32 and torch.equal(kept[name], stored[name]) for name in stored)
    assert read_json(tmp_path / "mine/model/config.json")["dtype"] == "float32"
    assert list(read_json(tmp_path / "mine/manifest.json")["precision"]) == ["float32"]
    assert "weights are kept as they are stored, in float32" in caplog.text


@pytest.mark.parametrize("equal", [True, False])
def test_tied_weights_that_are_there_twice_are_one_where_they_are_equal(
    gpt2_folder: Path, tmp_path: Path, equal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A pickle of a tied model has both names, and files are written by hand too."""
    wte = load_file(gpt2_folder / "model.safetensors")["transformer.wte.weight"]
    other = wte.clone() if equal else wte + 1
    edit_weights(gpt2_folder, lambda tensors: tensors.update({"lm_head.weight": other}))
    cache_model(local(gpt2_folder), tmp_path / "mine", "models.mine")
    kept = load_file(tmp_path / "mine/model/model.safetensors")
    assert ("lm_head.weight" in kept) == (not equal)
    model = load_policy(tmp_path / "mine/model", "fp32")
    assert torch.equal(model.get_output_embeddings().weight, other)
    assert ("are different, though its configuration ties them" in caplog.text) == (not equal)
    parameters = sum(weight.numel() for weight in kept.values())
    assert read_json(tmp_path / "mine/manifest.json")["parameters"] == parameters


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_a_quantised_model_is_refused(gpt2_folder: Path, tmp_path: Path, method: str) -> None:
    edit_json(gpt2_folder / "config.json", quantization_config={"quant_method": method, "bits": 4})
    assert f"it is quantised ({method}), and such weights cannot be trained" in refused(tmp_path, local(gpt2_folder))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth is in its authors' own format"),
        (["consolidated.safetensors"], "convert_mistral_weights_to_hf.py"),
        (["tf_model.h5", "flax_model.msgpack"], "flax_model.msgpack is of another framework"),
        (["model-00001-of-00002.safetensors"], "lacks the index of its parts, model.safetensors.index.json"),
        (["pytorch_model-00001-of-00002.bin"], "lacks the index of its parts, pytorch_model.bin.index.json"),
        (["training_args.bin"], "training_args.bin is all it has for weights"),
    ],
)
def test_what_is_there_in_the_place_of_weights_is_named(
    gpt2_folder: Path, tmp_path: Path, files: list[str], said: str
) -> None:
    (gpt2_folder / "model.safetensors").unlink()
    for file in files:
        (gpt2_folder / file).write_bytes(b"some content")
    assert said in refused(tmp_path, local(gpt2_folder))


def test_other_frameworks_beside_do_no_harm(gpt2_folder: Path, tmp_path: Path) -> None:
    for file in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "consolidated.safetensors", "optimizer.pt"):
        (gpt2_folder / file).write_bytes(b"not what it seems")
    cache_model(local(gpt2_folder), tmp_path / "mine", "models.mine")
    files = {file.name for file in (tmp_path / "mine/model").iterdir()}
    assert not files & {"pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "consolidated.safetensors"}
    assert read_json(tmp_path / "mine/manifest.json")["source"]["weights"] == "safetensors"


def test_a_pointer_of_git_lfs_is_named(gpt2_folder: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("tokenizer.json", "model.safetensors"):
        (gpt2_folder / name).write_text(pointer)
        message = refused(tmp_path, local(gpt2_folder))
        assert f"{name} is a pointer of git-lfs, not the file itself; run `git lfs pull`" in message
        assert "pickled" not in message


def test_an_adapter_is_told_from_a_left_over_configuration_of_one(gpt2_folder: Path, tmp_path: Path) -> None:
    (gpt2_folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    message = refused(tmp_path, local(gpt2_folder))
    assert "has adapter_config.json beside whole weights" in message
    assert "if the adapter is merged into these weights, remove adapter_config.json" in message
    (gpt2_folder / "model.safetensors").rename(gpt2_folder / "adapter_model.safetensors")
    message = refused(tmp_path, local(gpt2_folder))
    assert "is an adapter; merge it into its model" in message
    assert "remove" not in message


def test_an_index_that_names_a_missing_file_says_which(gpt2_folder: Path, tmp_path: Path) -> None:
    names = load_file(gpt2_folder / "model.safetensors")
    (gpt2_folder / "model.safetensors").rename(gpt2_folder / "model-00001-of-00002.safetensors")
    files = {name: f"model-0000{1 + ('wte' in name)}-of-00002.safetensors" for name in names}
    index = gpt2_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    message = refused(tmp_path, local(gpt2_folder))
    assert "names model-00002-of-00002.safetensors, which is not there (1 of 2 files are missing)" in message
    assert "pickled" not in message
    index.write_text('{"weight')
    assert "model.safetensors.index.json is damaged" in refused(tmp_path, local(gpt2_folder))


def test_weights_of_another_program_are_named(gpt2_folder: Path, tmp_path: Path) -> None:
    (gpt2_folder / "model.safetensors").unlink()
    assert "it has no weights (model.safetensors, or" in refused(tmp_path, local(gpt2_folder))
    (gpt2_folder / "tiny.Q4_1.gguf").write_bytes(b"GGUF\x03")
    for file in gpt2_folder.glob("tokenizer*"):  # it has its tokenizer inside
        file.unlink()
    message = refused(tmp_path, local(gpt2_folder))
    assert "tiny.Q4_1.gguf is of llama.cpp (GGUF)" in message
    assert "gguf_file='tiny.Q4_1.gguf'" in message


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_reward_model_is_no_start(tmp_path: Path, tied: bool) -> None:
    """Tied, it lacks nothing but has a head too many; untied, its output layer was never there."""
    folder = make_model(tmp_path / "llama", "llama")
    config = AutoConfig.from_pretrained(folder, num_labels=1, tie_word_embeddings=tied)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    message = refused(tmp_path, local(folder))
    assert "would lose its head: it is a reward model or a classifier (LlamaForSequenceClassification" in message
    if tied:
        assert "score.weight" in message


@pytest.mark.parametrize("name", ["v_head.summary.weight", "classifier.out_proj.weight", "qa_outputs.bias"])
def test_a_head_of_another_library_is_not_dropped(gpt2_folder: Path, tmp_path: Path, name: str) -> None:
    edit_weights(gpt2_folder, lambda tensors: tensors.update({name: torch.zeros(1, 32)}))
    message = refused(tmp_path, local(gpt2_folder))
    assert f"it is a reward model or a classifier ({name})" in message


def test_nothing_else_is_dropped_but_what_the_model_computes_itself(gpt2_folder: Path, tmp_path: Path) -> None:
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64)}  # in the files of the first GPT-2
    edit_weights(gpt2_folder, lambda tensors: tensors.update(mask))
    cache_model(local(gpt2_folder), tmp_path / "mine", "models.mine")
    edit_weights(gpt2_folder, lambda tensors: tensors.update({"transformer.extra.weight": torch.zeros(3)}))
    message = refused(tmp_path, local(gpt2_folder))
    assert "has no place for, and that would be dropped: transformer.extra.weight" in message


def test_a_remedy_is_said_where_it_applies_only(gpt2_folder: Path, tmp_path: Path) -> None:
    weights = gpt2_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    message = refused(tmp_path, local(gpt2_folder))
    assert "a file is damaged, or not what its name says" in message
    assert "incomplete metadata, file not fully covered" in message
    edit_json(gpt2_folder / "config.json", model_type="nonsense")
    unknown = refused(tmp_path, local(gpt2_folder))
    assert "the cause is not known to this workflow" in unknown
    assert "pip install --upgrade transformers" in unknown  # the end of what the library says
    assert "pickled" not in message + unknown


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


def test_weights_of_another_shape_are_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    edit_weights(gpt2_folder, lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(7)}))
    assert "transformer.ln_f.bias" in refused(tmp_path, local(gpt2_folder))
    with pytest.raises(UserError, match="of another shape, for example transformer.ln_f.bias"):
        load_policy(gpt2_folder, "fp32")


@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"\xff" * 100])
def test_weights_that_cannot_be_read_are_refused(gpt2_folder: Path, tmp_path: Path, content: bytes) -> None:
    """What an interrupted copy leaves behind."""
    (gpt2_folder / "model.safetensors").write_bytes(content)
    assert "models.mine.source.path: no usable model" in refused(tmp_path, local(gpt2_folder))
    with pytest.raises(UserError, match="no readable weights"):
        load_policy(gpt2_folder, "fp32")


def test_sampling_defaults_of_a_source_do_not_hinder_its_caching(gpt2_folder: Path, tmp_path: Path) -> None:
    edit_json(gpt2_folder / "generation_config.json", top_k=5, repetition_penalty=1.3, temperature=0.7)
    cache_model(local(gpt2_folder), tmp_path / "cache", "models.mine")
    assert not {"top_k", "temperature"} & set(read_json(tmp_path / "cache/model/generation_config.json"))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        load_policy(tmp_path, "fp32")


@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
def test_a_special_token_outside_the_vocabulary_is_refused(gpt2_folder: Path, tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, local(gpt2_folder, **{key: "</s>"}))
    assert f"models.mine.{key}: '</s>' is not one of this model's 50 tokens" in message


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
    for part in ("get_input_embeddings", "get_output_embeddings"):  # the new row is the mean of the others
        rows, old = (getattr(model, part)().weight.detach().double().numpy() for model in (after, before))
        np.testing.assert_array_equal(rows[:50], old)
        np.testing.assert_allclose(rows[50], old.mean(axis=0), rtol=1e-6, atol=1e-9)
    ids = torch.tensor([[1, 5, 49, 7]])
    with torch.no_grad():
        assert torch.equal(after(ids).logits[..., :50], before(ids).logits)
