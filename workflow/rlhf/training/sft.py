"""Phase 1: supervised fine-tuning on prompt + chosen answer. Shape suffixes are those of `rlhf.models.scores`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.data.batching import pack, pad
from rlhf.data.corpus import Corpus
from rlhf.errors import UserError
from rlhf.models.attention import PADDING, segment_mask, segment_positions, supports_segments
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.scores import inference_device, token_logprobs
from rlhf.training.delivery import policy_delivery
from rlhf.training.engine import Trainer, partitioned_loading
from rlhf.training.frame import load_corpora, supervised_engine, train_supervised
from rlhf.training.stage import SftStage
from rlhf.training.supervised import total_steps
from rlhf.training.weights import whole_while_used


class AnswerLikelihood:
    """Negative log-likelihood of an answer's tokens, EOS included.

    Args:
        loss_on: `completion`: the prompt is context only; `all`: its tokens count too, but the first, which has no
            context.
        capacity: tokens of a sequence into which rows are packed; None: each row is a sequence of its own.
    """

    statistics: tuple[str, ...] = ()

    def __init__(self, loss_on: str = "completion", capacity: int | None = None) -> None:
        self._all = loss_on == "all"
        self.capacity = capacity

    def usable(self, corpus: Corpus) -> np.ndarray:
        """All rows, [rows] bool."""
        return np.ones(len(corpus), dtype=bool)

    def lengths(self, corpus: Corpus) -> np.ndarray:
        """Tokens of prompt and answer, [rows]."""
        lengths: np.ndarray = corpus.lengths("prompt") + corpus.lengths("chosen")
        return lengths

    def count(self, corpus: Corpus, rows: np.ndarray) -> int:
        """Tokens of the rows that are learnt: what their summed loss is divided by."""
        if self._all:
            return int(self.lengths(corpus)[rows].sum()) - len(rows)
        return int(corpus.lengths("chosen")[rows].sum())

    def loss(self, model: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, list[float]]:
        """Summed negative log-likelihood in nats."""
        pairs = [(corpus.prompt(row), corpus.chosen(row)) for row in rows]
        if self.capacity is None:
            batch = collate_answers(pairs, corpus.pad_token_id)
            ids_BS, mask_BS, answer_BS = (part.to(inference_device(model)) for part in batch)
            context, counted_BS = {"attention_mask": mask_BS}, mask_BS if self._all else answer_BS
        else:
            batch = collate_packed(pairs, corpus.pad_token_id, self.capacity)
            ids_BS, segments_BS, answer_BS = (part.to(inference_device(model)) for part in batch)
            positions_BS = segment_positions(segments_BS)
            mask_B1SS = segment_mask(segments_BS, next(model.parameters()).dtype)
            context = {"attention_mask": mask_B1SS, "position_ids": positions_BS}
            # A first token has no context; what stands before it belongs to another row.
            counted_BS = (positions_BS > 0) & ((segments_BS != PADDING) if self._all else answer_BS)
        logits_BSV = model(input_ids=ids_BS, use_cache=False, **context).logits
        logprobs = token_logprobs(logits_BSV[:, :-1], ids_BS[:, 1:])  # position t - 1 predicts token t
        return -(logprobs * counted_BS[:, 1:]).sum(), []

    def questions(self, corpus: Corpus) -> Iterator[tuple[np.ndarray, int]]:
        """Questions to a delivered model: ids of each row, [length] int64, and how many of its first are not learnt."""
        for row in range(len(corpus)):
            prompt = corpus.prompt(row)
            yield np.concatenate([prompt, corpus.chosen(row)]), 1 if self._all else max(1, len(prompt))

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Loss in nats per counted token, and perplexity."""
        return {"loss": means["loss"], "perplexity": math.exp(min(means["loss"], 50.0))}


def collate_answers(pairs: list[tuple[np.ndarray, np.ndarray]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded sequences of prompt and answer.

    Args:
        pairs: (prompt ids, answer ids).
        pad_id: filler id.

    Returns:
        input ids, attention mask and answer mask (1 on answer tokens, EOS included), each [batch, seq] int64.
    """
    padded = pad([np.concatenate(pair) for pair in pairs], pad_id, "right")
    columns = np.arange(padded.input_ids.shape[1])
    prompts = np.array([len(prompt) for prompt, _ in pairs])[:, None]
    answer = padded.attention_mask * (columns >= prompts)
    return torch.from_numpy(padded.input_ids), torch.from_numpy(padded.attention_mask), torch.from_numpy(answer)


def collate_packed(
    pairs: list[tuple[np.ndarray, np.ndarray]], pad_id: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows packed into sequences, which are padded on the right.

    Args:
        pairs: (prompt ids, answer ids).
        pad_id: filler id.
        capacity: tokens of a sequence, at most.

    Returns:
        input ids and number of the segment (-1 on padding), each [batch, seq] int64, and whether a token belongs to an
        answer, [batch, seq] bool.
    """
    lengths = np.array([len(prompt) + len(answer) for prompt, answer in pairs])
    sequences = [[pairs[place] for place in places] for places in pack(lengths, capacity)]
    ids = [np.concatenate([part for pair in sequence for part in pair]) for sequence in sequences]
    segments = [np.repeat(np.arange(len(part)), [len(p) + len(a) for p, a in part]) for part in sequences]
    answer = [np.concatenate([np.arange(len(p) + len(a)) >= len(p) for p, a in part]) for part in sequences]
    columns = ((ids, pad_id), (segments, PADDING), (answer, 0))
    filled = [torch.from_numpy(pad(rows, filler, "right").input_ids) for rows, filler in columns]
    return filled[0], filled[1], filled[2].bool()


def _require_packing(model: PreTrainedModel, capacity: int | None) -> None:
    """Refuse packed rows where the model family cannot keep attention of one row from the others of its sequence."""
    if capacity is None:
        return
    with whole_while_used(model):
        apart = supports_segments(model, capacity)
    if not apart:
        raise UserError(
            f"sft.execution.packing: {model.config.model_type} cannot keep the rows of a sequence of {capacity} tokens "
            "apart; set it to false"
        )


def train_sft(stage: SftStage, model_folder: Path) -> None:
    """Run the SFT stage.

    Args:
        stage: specification and paths.
        model_folder: Hugging Face folder of the model to start from.

    Raises:
        UserError: the model folder is damaged, cannot be trained on packed rows where that is asked for, the LoRA
            pattern matches nothing, or no row is short enough.
    """
    settings = stage.settings
    objective = AnswerLikelihood(settings.loss_on, settings.max_seq_len if stage.execution.packing else None)
    with stage.memory.phase("load"):
        corpora = load_corpora(stage, objective, "sft")
        tokenizer = load_tokenizer(model_folder)
        template = corpora.train.chat_template
        if template is not None:
            tokenizer.chat_template = template  # saved with the model, so that others prompt it as it learnt
        zero3 = partitioned_loading(settings, supervised_engine(stage))
        model = load_policy(model_folder, settings.dtype, settings.dropout, zero3)
        _require_packing(model, objective.capacity)
        adapted = add_lora(model, settings, "sft")
        trainer = Trainer(model, settings, supervised_engine(stage), total_steps(corpora.train, settings))
    facts = train_supervised(stage, trainer, objective, corpora)
    delivery = policy_delivery(trainer.module, settings.dtype, objective.questions(corpora.unseen))
    stage.finish(model, adapted, tokenizer, delivery, corpora.inputs, **facts)
