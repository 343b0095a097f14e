"""What a model is given lies on the model's device, of which these tests take one where nothing is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf.data.corpus import Corpus
from rlhf.ppo.reward import ReEncodedText, SameTokens, reward_scorer
from rlhf.ppo.samples import Answer, Samples
from rlhf.training.reward import GroupPreference, answer_inputs
from rlhf.training.sft import AnswerLikelihood
from tests.tokenizers import make_tokenizer
from tests.unit.conftest import ListCorpus
from tests.unit.test_reading import read_as_trained

META = torch.device("meta")


class Arrived(Exception):
    """A model was called, with all that it needs beside it."""


class Elsewhere(nn.Module):
    """A model on a device of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=META))

    def forward(self, *given: Tensor, **named: Any) -> Tensor:
        tensors = [part for part in (*given, *named.values()) if isinstance(part, Tensor)]
        assert tensors and {part.device for part in tensors} == {META}
        raise Arrived


@pytest.mark.parametrize(
    "objective",
    [
        *(AnswerLikelihood(), AnswerLikelihood("all", capacity=64)),
        *(GroupPreference(), GroupPreference("token_wise"), GroupPreference(share_prompt=True)),
    ],
)
def test_of_a_model_in_training(group_corpus: ListCorpus, objective: AnswerLikelihood | GroupPreference) -> None:
    with pytest.raises(Arrived):
        objective.loss(Elsewhere(), group_corpus, np.arange(2))


def test_of_prompts_with_their_answers(group_corpus: ListCorpus) -> None:
    assert {part.device for part in answer_inputs(group_corpus, np.arange(2), META)} == {META}


@pytest.mark.parametrize("with_bos", [False, True])
def test_of_a_reward_model_in_ppo(tmp_path: Path, with_bos: bool) -> None:
    """Its ids are those of the samples, or those of their text in its own tokens."""
    policy, reward = make_tokenizer("byte-bpe", bos=False), make_tokenizer("byte-bpe", bos=with_bos)
    reader = read_as_trained(tmp_path, policy, reward, None)
    assert reader is (ReEncodedText if with_bos else SameTokens)
    prompts = Corpus([tmp_path / "policy-tokens"], [tmp_path / "split"], "train", "ppo")
    samples = Samples([prompts.prompt(0)], [Answer(prompts.chosen(0), np.zeros(1, np.float32), finished=True)], [0])
    scorer = reward_scorer(Elsewhere(), None, reward, policy, prompts)
    with pytest.raises(Arrived):
        scorer(samples, np.arange(1), samples.rectangle(np.arange(1), policy.pad_token_id, META))
