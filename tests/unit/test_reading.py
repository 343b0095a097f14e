"""What a reward model is asked in PPO is what it was trained on, whatever the policy's tokenizer and template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import PreTrainedTokenizerFast

from rlhf.config.specification import ResolvedDataset
from rlhf.data.corpus import Corpus
from rlhf.data.dataset import cache_dataset
from rlhf.data.split import split_dataset
from rlhf.data.tokens import TokenStore, tokenize
from rlhf.files import write_jsonl
from rlhf.ppo.reward import ReEncodedText, SameTokens, reward_scorer
from rlhf.ppo.samples import Answer, Samples
from tests.tokenizers import ASSISTANT, BOS, END, EOS, KINDS, USER, make_tokenizer

TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m.content }}<|end|>{% endfor %}"
OWN = TURNS.replace("<|end|>", "</s>") + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
OTHER = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %} {{ m.content }}{% endif %}{% endfor %}"
)
TEXTS = ["Once upon a time", "def f(x):\n    return x", "什么是苹果？ 🙂", f"say {EOS} and {USER}", " spaces  "]
ROWS = [
    {"prompt": prompt, "chosen": answer, "rejected": f"{answer}!"}
    for prompt in TEXTS
    for answer in ("Yes, it is.", "http://example.org/", "苹果", f"no{END}")
]


def tokenizer_with(kind: str, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = template
    return tokenizer


def read_as_trained(folder: Path, policy: Any, reward: Any, chat_template: str | None, **settings: Any) -> type:
    """Answer each prompt with its chosen answer, and compare what the reward model reads with its own tokens."""
    write_jsonl(folder / "rows.jsonl", ROWS)
    source = {"path": dict.fromkeys(("train", "eval"), str(folder / "rows.jsonl"))}
    turns = True if chat_template else None
    cache_dataset(ResolvedDataset(source=source, turns=turns, **settings), folder / "dataset", "datasets.mine")
    split_dataset(folder / "dataset", "0,0,1", 0, folder / "split")
    for name, tokenizer in (("policy", policy), ("reward", reward)):
        tokenizer.save_pretrained(folder / name)
        tokenize(folder / "dataset", folder / name, folder / f"{name}-tokens", chat_template=chat_template)
    prompts = Corpus([folder / "policy-tokens"], [folder / "split"], "train", "ppo")
    trained = TokenStore(folder / "reward-tokens", "train")
    rows = range(len(prompts))
    answers = [Answer(prompts.chosen(row), np.zeros(1, np.float32), finished=True) for row in rows]
    samples = Samples([prompts.prompt(row) for row in rows], answers, rows)
    scorer = reward_scorer(nn.Identity(), None, reward, policy, prompts)
    assert len(prompts) == len(ROWS)
    for row in rows:
        expected = [*trained.prompt(prompts.place(row)[1]), *trained.chosen(prompts.place(row)[1])]
        if isinstance(scorer, ReEncodedText):
            assert scorer._encode(samples, row).tolist() == expected
        else:
            assert [*samples.prompts[row], *answers[row].ids] == expected
    return type(scorer)


@pytest.mark.parametrize("template", [OTHER, SPACED])
def test_turns_are_written_by_the_reward_models_own_template(tmp_path: Path, template: str) -> None:
    """Also where vocabulary and EOS are the same, and ids would therefore fit."""
    policy, reward = tokenizer_with("byte-bpe", OWN), tokenizer_with("byte-bpe", template)
    assert read_as_trained(tmp_path, policy, reward, "tokenizer") is ReEncodedText


@pytest.mark.parametrize("template", [OTHER, SPACED])
def test_a_policys_own_template_is_not_read_as_text(tmp_path: Path, template: str) -> None:
    policy, reward = tokenizer_with("byte-bpe", template), tokenizer_with("metaspace-first", OWN)
    assert read_as_trained(tmp_path, policy, reward, "tokenizer") is ReEncodedText


@pytest.mark.parametrize("kind", KINDS[1:4])
def test_a_template_of_the_configuration_is_both_models(tmp_path: Path, kind: str) -> None:
    policy, reward = tokenizer_with("byte-bpe", None), tokenizer_with(kind, None)
    assert read_as_trained(tmp_path, policy, reward, OWN) is ReEncodedText


@pytest.mark.parametrize("kind", KINDS[1:4])
def test_special_tokens_of_formats_are_special_for_both(tmp_path: Path, kind: str) -> None:
    formats = {"prompt_format": f"{USER}{{prompt}}{END}{ASSISTANT}", "answer_format": f" {{answer}}{END}"}
    policy, reward = tokenizer_with("byte-bpe", None), tokenizer_with(kind, None)
    assert read_as_trained(tmp_path, policy, reward, None, **formats) is ReEncodedText


@pytest.mark.parametrize("chat_template", ["tokenizer", OWN, None])
def test_models_that_write_alike_share_their_ids(tmp_path: Path, chat_template: str | None) -> None:
    policy, reward = tokenizer_with("byte-bpe", OWN), tokenizer_with("byte-bpe", OWN if chat_template else OTHER)
    assert read_as_trained(tmp_path, policy, reward, chat_template) is SameTokens


def test_a_tokenizer_with_other_rules_reads_text_though_its_vocabulary_is_the_same(tmp_path: Path) -> None:
    policy, reward = make_tokenizer("byte-bpe", bos=False), make_tokenizer("byte-bpe", bos=True)
    assert policy.get_vocab() == reward.get_vocab()
    assert read_as_trained(tmp_path, policy, reward, None) is ReEncodedText


def test_an_unfinished_answer_has_no_end(tmp_path: Path) -> None:
    policy, reward = make_tokenizer("byte-bpe", bos=False), make_tokenizer("byte-bpe", bos=True)
    read_as_trained(tmp_path, policy, reward, None)
    prompts = Corpus([tmp_path / "policy-tokens"], [tmp_path / "split"], "train", "ppo")
    answer = Answer(prompts.chosen(0)[:-1], np.zeros(1, np.float32), finished=False)
    samples = Samples([prompts.prompt(0)], [answer], [0])
    scorer = reward_scorer(nn.Identity(), None, reward, policy, prompts)
    assert isinstance(scorer, ReEncodedText)
    ids = scorer._encode(samples, 0).tolist()
    assert ids[0] == reward.convert_tokens_to_ids(BOS) and ids[-1] != reward.eos_token_id


def test_a_text_that_is_too_long_keeps_its_end(tmp_path: Path) -> None:
    policy, reward = make_tokenizer("byte-bpe", bos=False), make_tokenizer("byte-bpe", bos=True)
    read_as_trained(tmp_path, policy, reward, None)
    prompts = Corpus([tmp_path / "policy-tokens"], [tmp_path / "split"], "train", "ppo")
    samples = Samples([prompts.prompt(0)], [Answer(prompts.chosen(0), np.zeros(1, np.float32), finished=True)], [0])
    whole, cut = (reward_scorer(nn.Identity(), limit, reward, policy, prompts) for limit in (None, 5))
    assert isinstance(whole, ReEncodedText) and isinstance(cut, ReEncodedText)
    ids = whole._encode(samples, 0).tolist()
    assert len(ids) > 5
    assert cut._encode(samples, 0).tolist() == ids[-5:]
