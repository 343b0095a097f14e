"""The reward model's view of sampled answers, also where it reads other tokens than the policy writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf.data.batching import pad
from rlhf.data.chat import writer_of
from rlhf.data.corpus import Corpus
from rlhf.data.encoding import Encoder, special_tokens
from rlhf.data.questions import Question
from rlhf.data.texts import Piece, Text, Writer
from rlhf.models.scores import inference_device, last_token
from rlhf.ppo.samples import Rectangle, Samples
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)


class RewardScorer(Protocol):
    """Scores answers as the reward model's training did: at the last token of prompt and answer, in its own tokens."""

    pad_id: int  # of the policy's tokenizer

    def __call__(self, samples: Samples, rows: np.ndarray, part: Rectangle) -> Tensor:
        """Scores of the samples `rows`, whose ids are in `part`: [rows] float32."""


def reward_scorer(
    model: nn.Module,
    max_positions: int | None,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    prompts: Corpus,
    score_at: str = "eos",
) -> RewardScorer:
    """The way in which a reward model reads the policy's answers: as it was trained on such prompts.

    Args:
        model: `TokenScorer`, or an engine around one.
        max_positions: of the reward model, or None where there is no limit.
        tokenizer: of the reward model.
        policy_tokenizer: of the policy.
        prompts: what is answered; `rows` of samples are its rows.
        score_at: `eos`, or `before_eos`: finished answers are scored at the token before their EOS.
    """
    same_template = not prompts.has_own_templates or policy_tokenizer.chat_template == tokenizer.chat_template
    if same_template and same_ids(policy_tokenizer, tokenizer):
        return SameTokens(model, policy_tokenizer.pad_token_id, score_at)
    logger.info("the reward model has another tokenizer or chat template: it reads answers as text, in its own way")
    return ReEncodedText(model, tokenizer, policy_tokenizer, max_positions, prompts.question, score_at)


def same_tokens(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> bool:
    """Whether the ids of two tokenizers mean the same, and the same one ends a text."""
    return bool(policy.get_vocab() == reward.get_vocab() and policy.eos_token_id == reward.eos_token_id)


def same_ids(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for the same text, BOS and EOS included."""
    special = [special_tokens(tokenizer) for tokenizer in (policy, reward)]
    rules = [
        json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        for tokenizer in (policy, reward)
    ]
    return same_tokens(policy, reward) and special[0] == special[1] and rules[0] == rules[1]


class SameTokens:
    """A reward model that reads the policy's ids.

    Args:
        model: `TokenScorer`, or an engine around one.
        pad_id: filler id.
        score_at: `eos` or `before_eos`.
    """

    def __init__(self, model: nn.Module, pad_id: int, score_at: str = "eos") -> None:
        self._model, self.pad_id = model, pad_id
        self._before_eos = score_at == "before_eos"

    def __call__(self, samples: Samples, rows: np.ndarray, part: Rectangle) -> Tensor:
        """Scores of the samples `rows`, whose ids are in `part`: [rows] float32."""
        device = inference_device(self._model)
        ids, mask = part.input_ids.to(device), part.attention_mask.to(device)
        if self._before_eos:
            mask = without_eos(mask, torch.from_numpy(samples.finished[rows]).to(device))
        return last_token(self._model(ids, mask), mask)


def without_eos(mask: Tensor, finished: Tensor) -> Tensor:
    """The attention mask without the EOS of finished answers, so that the score is read at the token before it.

    Args:
        mask: [batch, seq] int64.
        finished: whether the answer ends with EOS, [batch] bool.

    Returns:
        [batch, seq] int64.
    """
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1, keepdim=True)
    return mask.scatter(1, last, (~finished).to(mask.dtype).unsqueeze(1))


class ReEncodedText:
    """A reward model with a tokenizer or chat template of its own: it reads the text, written as in its training.

    Where prompt and answer have more tokens than the model has positions, the beginning of the prompt is left out.

    Args:
        model: `TokenScorer`, or an engine around one.
        tokenizer: of the reward model.
        policy_tokenizer: turns samples into text.
        max_positions: of the reward model, or None where there is no limit.
        questions: row of a sample's prompt -> that prompt as text.
        score_at: `eos` or `before_eos`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        max_positions: int | None,
        questions: Callable[[int], Question],
        score_at: str = "eos",
    ) -> None:
        self._model, self._tokenizer, self._policy_tokenizer = model, tokenizer, policy_tokenizer
        self._max_positions, self._questions = max_positions, questions
        self._encoder = Encoder(tokenizer)
        self._policy_special = set(special_tokens(policy_tokenizer).values())
        self._writers: dict[str | None, Writer] = {}
        self._with_eos = score_at == "eos"
        self.pad_id: int = policy_tokenizer.pad_token_id

    def __call__(self, samples: Samples, rows: np.ndarray, part: Rectangle) -> Tensor:
        """Scores of the samples `rows`: [rows] float32."""
        padded = pad([self._encode(samples, row) for row in rows], self._tokenizer.pad_token_id, "right")
        device = inference_device(self._model)
        ids, mask = torch.from_numpy(padded.input_ids).to(device), torch.from_numpy(padded.attention_mask).to(device)
        return last_token(self._model(ids, mask), mask)

    def _encode(self, samples: Samples, row: int) -> np.ndarray:
        answer = samples.answers[row]
        question = self._questions(samples.rows[row])
        drawn = answer.ids[:-1] if answer.finished else answer.ids
        written = question.answered(self._writer(question.chat_template), self._text(samples.prompts[row], drawn))
        ids = self._encoder.whole(written, ended=answer.finished and self._with_eos)
        if self._max_positions is not None and len(ids) > self._max_positions:
            logger.warning(
                "a sample has %d tokens for the reward model, which has %d positions; "
                "the beginning of its prompt is left out",
                len(ids),
                self._max_positions,
            )
            ids = ids[-self._max_positions :]
        return np.array(ids or [self._tokenizer.eos_token_id], dtype=np.int64)

    def _writer(self, template: str | None) -> Writer:
        if template not in self._writers:
            self._writers[template] = writer_of(self._tokenizer, template)
        return self._writers[template]

    def _text(self, prompt: np.ndarray, answer: np.ndarray) -> Text:
        """An answer as the policy continues its prompt; its special tokens are no data."""
        ids = [*prompt.tolist(), *answer.tolist()]
        places = [place for place in range(len(prompt), len(ids)) if ids[place] in self._policy_special]
        borders = sorted({len(prompt), len(ids), *places, *(place + 1 for place in places)})
        starts = [len(self._decode(ids[:border])) for border in borders]
        text = self._decode(ids)
        return [
            Piece(text[start:end], own=border in places)
            for border, start, end in zip(borders, starts, starts[1:], strict=False)
        ]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._policy_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text
