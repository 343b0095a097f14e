"""Texts through the real rules: what is trained is what was given, and the reward model is asked as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.data.dataset import load_cached
from rlhf.data.tokens import TokenStore
from rlhf.files import read_json, read_jsonl
from tests.project import tiny_config
from tests.snakemake import snakemake, write_config
from tests.tokenizers import ASSISTANT, BOS, END, EOS, USER, make_tokenizer
from tests.unit.conftest import FAMILIES, edit_json, save_random_model

CHATML = (
    "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }} {{ m.content }}{{ '<|end|>' if m.role == 'user' else '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
TEXTS = [  # prompt, answer
    ("### Response:\n", "Yes"),
    ("def f(", "x): return x"),
    ("http://", "example.org"),
    ("什么？", "苹果"),
    (f"{BOS}Human: hi", f" Once{EOS}"),
    ("Assistant: ", "Hello"),
]


def published(folder: Path, kind: str, tokenizer_class: str, template: str | None) -> Path:
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = template
    save_random_model(folder, "llama", FAMILIES["llama"] | {"max_position_embeddings": 128}, len(tokenizer))
    tokenizer.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder


def configuration(folder: Path, dataset: dict[str, Any], rows: int, **models: tuple[str, str, str | None]) -> Path:
    """A project with own texts; the first model is the policy, the last one the reward model."""
    lines = []
    for number in range(rows):
        prompt, answer = TEXTS[number % len(TEXTS)]
        lines.append({"prompt": prompt, "chosen": answer, "rejected": f"{answer} {number}"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny_config()
    config["datasets"] = {"mine": {"source": {"path": "rows.jsonl", "eval_share": 0.2}, **dataset}}
    config["models"] = {}
    for name, form in models.items():
        published(folder / name, *form)
        config["models"][name] = {"source": {"path": name}}
    names = list(models)
    config["defaults"] |= {"data_path": ["mine"], "policy": names[0], "reward_model": names[-1]}
    config["defaults"]["sft"] |= {"num_train_epochs": 20, "max_seq_len": 100, "num_warmup_steps": 0}
    config["defaults"]["reward"] |= {"max_seq_len": 100, "num_warmup_steps": 0}
    config["defaults"]["ppo"] |= {"iterations": 1, "max_prompt_seq_len": 64, "max_answer_seq_len": 24}
    config["defaults"]["evaluation"] = {"prompts": 6, "best_of_n": 2, "samples": 3}
    return write_config(folder, config)


def run(folder: Path, config: Path, *until: str) -> None:
    result = snakemake(folder, "--cores", "2", "--show-failed-logs", "--configfile", str(config), "--until", *until)
    assert result.returncode == 0, result.stdout[-4000:]


def test_ids_are_those_of_the_given_text(tmp_path: Path) -> None:
    """Of two published models, one of which names a class that has rules of its own."""
    formats = {"prompt_format": f"{USER}{{prompt}}", "answer_format": f"{{answer}}{END}"}
    models = {"bytes": ("byte-bpe", "PreTrainedTokenizerFast", None), "llama": ("prepend", "LlamaTokenizer", None)}
    run(tmp_path, configuration(tmp_path, formats, 30, **models), "tokenize_dataset")
    (dataset,) = tmp_path.glob("resources/datasets/*")
    rows = load_cached(dataset, "train")
    for name in models:
        (folder,) = tmp_path.glob(f"results/tokens/rows-{name}-*")
        store, file = TokenStore(folder, "train"), Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        special = [file.token_to_id(token) for token in (BOS, EOS, USER, ASSISTANT, END)]
        for number, row in enumerate(rows["row"]):
            prompt, answer = TEXTS[row % len(TEXTS)]
            ids = [*store.prompt(number).tolist(), *store.chosen(number).tolist()]
            assert [token for token in ids if token in special] == [special[0], special[2], special[4], special[1]]
            if EOS not in answer:
                assert ids == [*file.encode(f"{USER}{prompt}{answer}{END}{EOS}").ids]
            else:
                assert file.decode(ids, skip_special_tokens=True).strip() == prompt + answer
        report = read_json(folder / "report.json")
        assert report["splits"]["train"]["spelled_special_tokens"]["count"] == sum(row % 6 == 4 for row in rows["row"])
        assert len(report["examples"]) == 3
    (log,) = tmp_path.glob("logs/model/llama-*.log")
    assert "LlamaTokenizer changes normalizer, pre_tokenizer" in log.read_text()


@pytest.mark.slow
def test_a_reward_model_is_asked_in_its_own_template(tmp_path: Path) -> None:
    """Its scores in the evaluation are those of a program that knows its folder alone; PPO runs with it."""
    fast = "PreTrainedTokenizerFast"
    models = {"policy": ("byte-bpe", fast, CHATML), "reward": ("prepend", fast, PHI)}
    run(
        tmp_path,
        configuration(tmp_path, {"chat_template": "tokenizer"}, 60, **models),
        "sample_baseline",
        "train_ppo",
    )
    (folder,) = tmp_path.glob("results/reward/*/model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == PHI
    (samples,) = tmp_path.glob("results/baseline/*/samples.jsonl")
    compared = 0
    for line in read_jsonl(samples):
        written = line["prompt"].removeprefix("<|user|>user\n").removesuffix("</s>\n<|user|>assistant\n")
        prompt = next(text for text, _ in TEXTS if text.strip() == written.strip())
        for sample in line["answers"]:
            if not sample["finished"] or any(token in sample["text"] + prompt for token in (BOS, EOS, "�")):
                continue
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": sample["text"]}]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
            with torch.no_grad():
                score = (float(model(ids).logits[0, 0]) - model.config.reward_mean) / model.config.reward_std
            compared += 1
            assert np.isclose(score, sample["score"], atol=1e-3), (line["prompt"], sample["text"])
    assert compared
    (log,) = tmp_path.glob("logs/ppo/*.log")
    assert "another tokenizer or chat template: it reads answers as text" in log.read_text()
