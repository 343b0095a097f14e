"""Files of a trained model: shards, adapters, generation settings and the card."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from rlhf.config import dumped
from rlhf.config.section import Section
from rlhf.config.specification import ResolvedDataset, ResolvedModel, RewardUpstream, SplitSettings
from rlhf.config.stages import Optimization, PpoSettings
from rlhf.files import sha256_tree, write_json
from rlhf.models.card import model_card
from rlhf.models.loading import load_policy, load_reward, load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.merged import FILE, MergedAdapters
from rlhf.models.saving import sampling_config, write_adapter, write_model
from rlhf.records.metrics import MetricsLine
from rlhf.runtime.lineage import adapter_base, lineage
from rlhf.runtime.manifest import describe
from rlhf.training.weights import WeightCopy, adapter_weights, merged_adapters, plain_weights
from tests.specifications import specification

LORA = {"lora_dim": 4, "lora_alpha": 6.0, "lora_module_name": "h."}
BASE = "results/sft/tiny-s1-12345678/model"
IDS = torch.tensor([[3, 4, 5, 6, 7]])


def train(model: Any) -> None:
    """Move every trainable weight, as training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def save(model: Any, folder: Path, tokenizer: Path, size: str = "5GB", adapters: MergedAdapters | None = None) -> Path:
    generation = sampling_config(model, PpoSettings(temperature=0.7, max_answer_seq_len=12))
    weights = plain_weights(model, keep=True)
    write_model(model, weights, load_tokenizer(tokenizer), folder, size, generation, "# card\n", adapters)
    return folder


@pytest.mark.parametrize("only_lora", [True, False])
def test_a_policys_adapter_on_its_base_is_the_merged_model(gpt2_folder, tmp_path, only_lora):
    """Also where embeddings, norms and biases were trained beside the matrices."""
    model = load_policy(gpt2_folder, "fp32")
    adapted = add_lora(model, Optimization(**LORA, only_optimize_lora=only_lora), "sft")
    train(model)
    trained = model.eval()(IDS).logits
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "adapter", BASE)
    merged = AutoModelForCausalLM.from_pretrained(save(model, tmp_path / "model", gpt2_folder))
    base = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    untrained = base(IDS).logits
    assert (trained - untrained).abs().max() > 0.1
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(IDS).logits, trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged(IDS).logits, trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(IDS).logits, trained)  # saving leaves the model as it was


def test_a_reward_models_adapter_brings_its_head(gpt2_folder, tmp_path):
    model = load_reward_backbone(gpt2_folder, "fp32", seed=5)
    adapted = add_lora(model, Optimization(**LORA, only_optimize_lora=True), "reward")
    train(model)
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "adapter", BASE)
    base = AutoModelForSequenceClassification.from_pretrained(gpt2_folder, num_labels=1)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_names_its_task_so_that_peft_finds_base_and_class(gpt2_folder, tmp_path):
    model = load_policy(gpt2_folder, "fp32")
    adapted = add_lora(model, Optimization(**LORA, only_optimize_lora=True), "sft")
    train(model)
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "policy", str(gpt2_folder))
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-4)
    model = load_reward_backbone(gpt2_folder, "fp32", seed=5)
    adapted = add_lora(model, Optimization(**LORA, only_optimize_lora=True), "reward")
    train(model)
    write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / "reward", str(gpt2_folder))
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "reward", num_labels=1).eval()
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "hub", "base"),
    [
        ("model", "facebook/opt-125m", ("facebook/opt-125m", "v1")),
        ("model", None, ("resources/models/a-1/model", None)),
        ("sft", "facebook/opt-125m", ("results/sft/a-1/model", None)),  # that model has been trained on since
    ],
)
def test_an_adapters_base_is_named_as_others_find_it(stage, hub, base):
    folder = "resources/models" if stage == "model" else "results/sft"
    model = {"stage": stage, "id": "a-1", "path": f"{folder}/a-1/model", "hub": hub, "revision": hub and "v1"}
    assert adapter_base(model) == base


def test_an_adapter_has_no_pickle_no_machine_path_and_the_same_bytes_again(gpt2_folder, tmp_path):
    model = load_policy(gpt2_folder, "fp32")
    adapted = add_lora(model, Optimization(**LORA, only_optimize_lora=True), "sft")
    for name in ("one", "two"):
        write_adapter(model, adapter_weights(model, keep=True), adapted, tmp_path / name, BASE, "v1")
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert set(one) == {"adapter_model.safetensors", "adapter_config.json"}
    assert one == two
    config = json.loads(one["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, "v1")
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(tmp_path) not in one["adapter_config.json"].decode()
    assert str(gpt2_folder) == adapted.peft_config["default"].base_model_name_or_path  # the live one is untouched
    names = load_file(tmp_path / "one/adapter_model.safetensors")
    assert all("lora_" in name and "default" not in name for name in names)


def test_equal_content_is_equal_bytes_in_every_file(gpt2_folder, tmp_path, group):
    """Written many times, because an order that is drawn anew for each file is the same one in half of them."""
    model = load_policy(gpt2_folder, "fp32")
    adapted = add_lora(model, Optimization(**LORA), "sft")
    train(model)
    changes = merged_adapters(model, keep=True)
    assert len(changes) > 3
    copies = WeightCopy(model)

    def hashes(folder: Path) -> dict[str, str]:
        save(model, folder / "model", gpt2_folder, "20KB", changes)
        write_adapter(model, adapter_weights(model, keep=True), adapted, folder / "adapter", BASE)
        copies.save(folder)
        return sha256_tree(folder)

    first = hashes(tmp_path / "0")
    assert {"rank-0.safetensors", "adapter/adapter_model.safetensors", f"model/{FILE}"} < set(first)
    assert sum(name.endswith(".safetensors") for name in first) > 3 + 2
    for number in range(1, 16):
        assert hashes(tmp_path / str(number)) == first


def test_a_large_model_is_cut_into_files_with_an_index(gpt2_folder, tmp_path):
    model = load_policy(gpt2_folder, "fp32")
    folder = save(model, tmp_path / "model", gpt2_folder, "20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name: file.name for file in shards for name in load_file(file)} == index
    loaded = load_policy(folder, "fp32").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_a_merged_model_is_cut_too(gpt2_folder, tmp_path):
    model = load_policy(gpt2_folder, "fp32")
    add_lora(model, Optimization(**LORA), "sft")
    train(model)
    folder = save(model, tmp_path / "model", gpt2_folder, "20KB")
    assert (folder / "model.safetensors.index.json").exists()
    torch.testing.assert_close(load_policy(folder, "fp32")(IDS).logits, model.eval()(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_policy_says_how_it_is_sampled_and_our_stages_do_not_follow(gpt2_folder, tmp_path):
    folder = save(load_policy(gpt2_folder, "fp32"), tmp_path / "model", gpt2_folder)
    written = GenerationConfig.from_pretrained(folder)
    written.validate(strict=True)
    assert (written.do_sample, written.temperature, written.max_new_tokens) == (True, 0.7, 12)
    assert (written.top_k, written.top_p) == (0, 1.0)
    assert (written.eos_token_id, written.pad_token_id) == (1, 0)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.temperature == 0.7
    assert not load_policy(folder, "fp32").generation_config.do_sample


def test_a_reward_model_has_no_generation_settings(gpt2_folder, tmp_path):
    model = load_reward_backbone(gpt2_folder, "fp32", seed=5)
    model.config.reward_mean, model.config.reward_std = 0.5, 2.0
    weights = plain_weights(model, keep=True)
    write_model(model, weights, load_tokenizer(gpt2_folder), tmp_path / "model", "5GB", None, "# card\n")
    assert not (tmp_path / "model/generation_config.json").exists()
    assert (tmp_path / "model/README.md").read_text() == "# card\n"
    assert load_reward(tmp_path / "model", "fp32").config.reward_std == 2.0


def write_specs(results: Path) -> None:
    tokenizer = {"kind": "words", "vocab_size": 64}
    scratch = ResolvedModel(source="scratch", architecture={"model_type": "gpt2"}, tokenizer=tokenizer)
    specs: dict[str, tuple[Section, dict[str, Any]]] = {
        "model/opt-11111111": (ResolvedModel(source={"hub": "facebook/opt-125m"}), {}),
        "model/gpt2-22222222": (scratch, {"dataset": "d"}),
        "model/mine-33333333": (ResolvedModel(source={"path": "/home/me/mine"}), {}),
        "sft/opt-s1-44444444": (
            specification("sft").settings,
            {"model": "opt-11111111", "tokens": [], "split": []},
        ),
        "dataset/static-55555555": (ResolvedDataset(source={"hub": "Dahoas/rm-static"}), {}),
        "split/static-66666666": (SplitSettings(data_split="2,4,4", split_seed=9), {"dataset": "static-55555555"}),
    }
    for place, (settings, upstream) in specs.items():
        stage, identifier = place.split("/")
        head = {"schema_version": 1, "stage": stage, "id": identifier, "seed": None}
        (results / place).mkdir(parents=True)
        spec = {**head, "settings": dumped(settings), "upstream": upstream}
        (results / place / "spec.yaml").write_text(yaml.safe_dump(spec))


@pytest.mark.parametrize(
    ("upstream", "path", "hub"),
    [
        ({"model": "opt-11111111"}, "resources/models/opt-11111111/model", "facebook/opt-125m"),
        ({"model": "gpt2-22222222"}, "resources/models/gpt2-22222222/model", None),
        ({"model": "mine-33333333"}, "resources/models/mine-33333333/model", None),
        ({"sft": "opt-s1-44444444"}, "results/sft/opt-s1-44444444/model", "facebook/opt-125m"),
        ({"sft": "lost-77777777"}, "results/sft/lost-77777777/model", None),
    ],
)
def test_a_model_comes_from_its_upstream_stages(tmp_path, upstream, path, hub):
    write_specs(tmp_path)
    splits = ["static-66666666", "lost-88888888"]
    found = lineage(RewardUpstream(**upstream, tokens=[], split=splits), tmp_path)
    assert (found["base_model"]["path"], found["base_model"]["hub"]) == (path, hub)
    assert found["datasets"] == [
        {
            "split": "static-66666666",
            "dataset": "static-55555555",
            "hub": "Dahoas/rm-static",
            "data_split": "2,4,4",
            "split_seed": 9,
        },
        {"split": "lost-88888888"},
    ]


def test_what_is_known_of_a_published_model_and_dataset_is_passed_on(tmp_path):
    write_specs(tmp_path / "results")
    model, data = tmp_path / "resources/models/opt-11111111", tmp_path / "resources/datasets/static-55555555"
    source = {"hub": "facebook/opt-125m", "commit": "c" * 40, "license": "other"}
    write_json(model / "manifest.json", {"source": source, "precision": {"float32": 2, "float16": 9}})
    write_json(data / "report.json", {"source": {"commit": "d" * 40, "license": None}})
    for upstream in ({"model": "opt-11111111"}, {"sft": "opt-s1-44444444"}):
        found = lineage(RewardUpstream(**upstream, tokens=[], split=["static-66666666"]), tmp_path / "results")
        base = found["base_model"]
        assert (base["revision"], base["license"], base["precision"]) == ("c" * 40, "other", ["float16", "float32"])
        assert found["datasets"][0]["commit"] == "d" * 40 and "license" not in found["datasets"][0]


KINDS = ("sft", "reward", "ppo")
METRICS = {
    "sft": {"loss": 1.25, "perplexity": 3.49},
    "reward": {"loss": 0.5, "accuracy": 0.75},
    "ppo": {"score": 1.5, "kl": 2.25},
}


def card(
    kind: str,
    hub: str | None = "facebook/opt-125m",
    changes: dict[str, Any] | None = None,
    more_facts: dict[str, Any] | None = None,
    known: dict[str, Any] | None = None,
    **options: Any,
) -> str:
    spec = specification(kind, changes, id=f"tiny-{kind}-12345678", seed=7)
    part = {
        "split": "static-6",
        "dataset": "static-5",
        "hub": "Dahoas/rm-static",
        "data_split": "2,4,4",
        "split_seed": 9,
    }
    facts = {
        "lineage": {
            "base_model": {
                "stage": "model",
                "id": "m-1",
                "path": "p",
                "hub": hub,
                "revision": hub and "v1",
                **(known or {}),
            },
            "datasets": [part | ({"commit": "d" * 40} if known else {})],
        },
        "rows": {"train": 321, "eval": 45},
        "dtype": "bf16",
        "world_size": 2,
        "device": "cuda",
        **(more_facts or {}),
    }
    rows = [{"step": step, "phase": "train", "time": 1.0, **METRICS[kind], "tokens": 99} for step in (1, 40)]
    rows.append({"step": 40, "phase": "eval", "time": 2.0, **METRICS[kind]})
    return model_card(spec, describe(spec, {}, **facts), [MetricsLine.of(row) for row in rows], **options)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("kind", "task", "tag"),
    [
        ("sft", "text-generation", "sft"),
        ("reward", "text-classification", "reward-model"),
        ("ppo", "text-generation", "ppo"),
    ],
)
def test_a_card_says_what_the_model_is(kind, task, tag):
    text = card(kind)
    head = front_matter(text)
    assert head["library_name"] == "transformers" and head["base_model"] == "facebook/opt-125m"
    assert "- Pretrained model: `facebook/opt-125m` at revision `v1`\n- Starts from: model m-1\n" in text
    assert head["pipeline_tag"] == task and {"rlhf", tag} <= set(head["tags"])
    assert head["license"] == "unknown" and "No licence is stated" in text
    assert f"tiny-{kind}-12345678" in text and "Seed: 7" in text and "bf16 by 2 processes" in text
    assert "| Dahoas/rm-static | 2,4,4 | 9 | static-6 |" in text
    assert "321 rows trained on" in text and "45 rows unseen" in text
    values = " | ".join(f"{value:.4g}" for value in METRICS[kind].values())
    assert f"| last training step | 40 | {values} |" in text and f"| unseen rows | 40 | {values} |" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings == specification(kind).settings.model_dump(mode="json")
    assert "- torch " in text and "Code sha256:" in text


def test_a_card_counts_the_rows_that_were_used_and_those_that_are_not_unseen():
    text = card("sft", more_facts={"rows_given": 321})
    assert "- 321 rows trained on\n" in text and "trained on too" not in text
    text = card("sft", more_facts={"rows_given": 400, "seen_in_train": 9})
    assert "- 321 rows trained on, of 400 that it was given\n" in text
    assert "- 45 rows unseen in training" in text and "prompts or groups of 9 of them are trained on too" in text
    assert "| unseen rows (9 of 45 trained on too) | 40 |" in text
    text = card("ppo", more_facts={"rows": {"train": 24, "mixed": 7}, "rows_given": 142, "answers": 48})
    assert "- 24 prompts trained on, of 142 that it was given, with 48 sampled answers\n" in text
    assert "- 7 rows of SFT data mixed into its steps\n" in text


def test_a_card_says_which_commit_licence_and_precision_it_started_from():
    known = {"revision": "c" * 40, "license": "llama2 (own)", "precision": ["float16", "float32"]}
    text = card("sft", known=known)
    expected = [
        f"- Pretrained model: `facebook/opt-125m` at revision `{'c' * 40}`",
        "- Licence of the pretrained model, as its card states it: llama2 (own)",
        "- The pretrained model's weights are stored in float16 and float32",
        "- Starts from: model m-1",
    ]
    assert "\n".join(expected) in text
    assert f"| Dahoas/rm-static (commit {'d' * 12}) | 2,4,4 |" in text
    assert "- Pretrained model: `facebook/opt-125m` at revision `v1`\n- Starts from: model m-1" in card("sft")


def test_tables_of_a_card_have_the_cells_of_their_heads():
    for kind in KINDS:
        for block in card(kind).split("\n\n"):
            counts = {line.count("|") for line in block.strip().splitlines() if line.startswith("|")}
            assert len(counts) <= 1, block


def test_a_card_names_no_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "secret-host")
    monkeypatch.setattr("sys.argv", ["/home/somebody/train.py"])
    text = card("ppo")
    assert "secret-host" not in text and "/home" not in text


def test_a_card_shows_how_to_load_and_normalise():
    for kind in KINDS:
        compile(card(kind).split("```python\n")[1].split("```")[0], "card", "exec")
    assert "reward_mean" in card("reward").split("```python\n")[1].split("```")[0]


def test_a_card_states_a_configured_licence_and_no_base_that_is_not_on_a_hub():
    text = card("sft", hub=None, license="apache-2.0")
    assert front_matter(text)["license"] == "apache-2.0" and "Licence: apache-2.0." in text
    assert "base_model" not in front_matter(text)


def test_a_card_says_whether_the_matrices_alone_are_the_model():
    lora = copy.deepcopy(LORA)
    alone = card("sft", changes=lora | {"only_optimize_lora": True}, has_adapter=True)
    assert "saved apart" in alone and "not this model" not in alone
    assert "the matrices alone are not this model" in card("sft", changes=lora, has_adapter=True)
    assert "LoRA matrices (rank" not in card("sft")


def test_a_card_says_what_half_precision_would_lose():
    lora = LORA | {"only_optimize_lora": True}
    text = card("sft", changes=lora, has_adapter=True, merge={"dtype": "bf16", "error": 0.7249, "limit": 0.05})
    assert "are in float32, though training was in bf16" in text and "be off by 72 % of the change" in text
    assert "would be off" not in card("sft", changes=lora, merge={"dtype": "bf16", "error": None, "limit": 0.05})
    assert "float32" not in card("sft", changes=lora, has_adapter=True)


def test_a_card_of_averaged_weights_says_so():
    assert "(decay 0.99)" in card("ppo", changes={"ema_decay": 0.99}, averaged=True)
    assert "average" not in card("ppo")
