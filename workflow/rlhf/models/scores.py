"""Log-probabilities, entropies and reward scores of given sequences.

Where a reader has to carry shapes, a local name ends with them, here, in `rlhf.ppo` and in the losses of
`rlhf.training`: `logits_NV` is [answer tokens, vocabulary].

    B   sequences computed at once, or samples of a rollout
    S   positions of a padded sequence, prompt and answer
    T   columns of a table of answers: tokens of the longest one
    N   answer tokens of all sequences, row by row, without padding
    V   vocabulary
    D   width of the model
    G   groups: prompts with several answers each
    K   answers of a group, where all have as many
    A   answers of all groups, one after the other
    P   pairs of answers
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import slice_logits_to_keep

from rlhf.models.loading import accepts


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log softmax(logits) at the targets, in fp32, without a full softmax copy.

    Args:
        logits: [..., vocab], any floating dtype, already divided by the temperature.
        targets: [...] int64.

    Returns:
        [...] float32.
    """
    logits = logits.float()
    return logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: [..., vocab] -> [...] float32."""
    logits = logits.float()
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def answer_logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, predicting: Tensor) -> Tensor:
    """Logits of some positions only: the output layer computes no others, and they are kept nowhere.

    The logits of position t - 1 predict token t. Positions count from 0 in every row, so padding must be on the right.

    Args:
        model: causal language model, or an engine around one.
        input_ids: right-padded, [batch, seq] int64.
        attention_mask: [batch, seq] int64, 1 on real tokens.
        predicting: the positions: a mask, [batch, seq] bool, or the same ones in each row, [positions] int64.

    Returns:
        [tokens, vocab] in the model's dtype, row by row.
    """
    arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if accepts(getattr(model, "module", model), "logits_to_keep"):
        logits: Tensor = model(**arguments, logits_to_keep=predicting).logits
    else:
        logits = slice_logits_to_keep(model(**arguments).logits, predicting)
    return logits.flatten(0, -2)


class TokenScorer(nn.Module):
    """Scores of a reward model at every position, normalised by the mean and deviation stored with it.

    Used as reward model (read at the last valid token) and as value model (read before each action).

    Args:
        model: `AutoModelForSequenceClassification` with one label and a linear `score` head.
        mean: subtracted from the raw score.
        std: divides it.
    """

    def __init__(self, model: PreTrainedModel, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = mean, std
        self._body_name = model.base_model_prefix

    @classmethod
    def normalised(cls, model: PreTrainedModel) -> TokenScorer:
        """The scorer with the normalisation in the model's configuration."""
        return cls(model, model.config.reward_mean, model.config.reward_std)

    @property
    def body(self) -> nn.Module:
        """The transformer below the head."""
        body: nn.Module = getattr(self.model, self._body_name)
        return body

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Normalised scores.

        Args:
            input_ids: right-padded, [batch, seq] int64.
            attention_mask: [batch, seq] int64, 1 on real tokens; or additive, [batch, 1, seq, seq], with `positions`.
            positions: [batch, seq] int64; None: they count from 0.

        Returns:
            [batch, seq] float32.
        """
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if positions is not None:
            arguments["position_ids"] = positions
        hidden_BSD = self.body(**arguments).last_hidden_state
        scores_BS: Tensor = self.model.score(hidden_BSD).squeeze(-1).float()
        return (scores_BS - self.mean) / self.std


def last_token(values: Tensor, attention_mask: Tensor) -> Tensor:
    """The entry at each row's last valid position, under padding on either side: [batch, seq] -> [batch]."""
    width = attention_mask.shape[1]
    last_B = width - 1 - attention_mask.flip(1).long().argmax(1)
    return values.gather(1, last_B.unsqueeze(1)).squeeze(1)


def inference_device(model: nn.Module) -> torch.device:
    """The device a model's inputs must be on."""
    return next(model.parameters()).device
