"""The reward model's view of sampled answers, also where it reads other tokens than the policy writes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf.data.batching import pad
from rlhf.data.tokens import encode_answers, encode_prompts
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
    score_at: str = "eos",
) -> RewardScorer:
    """The way in which a reward model reads the policy's answers.

    Args:
        model: `TokenScorer`, or an engine around one.
        max_positions: of the reward model, or None where there is no limit.
        tokenizer: of the reward model.
        policy_tokenizer: of the policy.
        score_at: `eos`, or `before_eos`: finished answers are scored at the token before their EOS.
    """
    if same_tokens(policy_tokenizer, tokenizer):
        return SameTokens(model, policy_tokenizer.pad_token_id, score_at)
    return ReEncodedText(model, tokenizer, policy_tokenizer, max_positions, score_at)


def same_tokens(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for the same text and end it with the same EOS."""
    return bool(policy.get_vocab() == reward.get_vocab() and policy.eos_token_id == reward.eos_token_id)


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
    """A reward model with a tokenizer of its own: it reads the text, encoded as in its training.

    Where prompt and answer have more tokens than the model has positions, the beginning of the prompt is left out.

    Args:
        model: `TokenScorer`, or an engine around one.
        tokenizer: of the reward model.
        policy_tokenizer: turns samples into text.
        max_positions: of the reward model, or None where there is no limit.
        score_at: `eos` or `before_eos`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        max_positions: int | None,
        score_at: str = "eos",
    ) -> None:
        self._model, self._tokenizer, self._policy_tokenizer = model, tokenizer, policy_tokenizer
        self._max_positions = max_positions
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
        prompt, text = (
            self._policy_tokenizer.decode(ids, skip_special_tokens=True) for ids in (samples.prompts[row], answer.ids)
        )
        (head,) = encode_prompts([prompt], self._tokenizer)
        (tail,) = encode_answers([prompt], [text], self._tokenizer)
        ids = head + (tail if answer.finished and self._with_eos else tail[:-1])
        if self._max_positions is not None and len(ids) > self._max_positions:
            logger.warning(
                "a sample has %d tokens for the reward model, which has %d positions; "
                "the beginning of its prompt is left out",
                len(ids),
                self._max_positions,
            )
            ids = ids[-self._max_positions :]
        return np.array(ids or [self._tokenizer.eos_token_id], dtype=np.int64)
