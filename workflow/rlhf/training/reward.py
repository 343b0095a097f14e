"""Phase 2: a reward model from preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf.data.batching import micro_batches, pad
from rlhf.data.corpus import Corpus
from rlhf.errors import UserError
from rlhf.models.loading import load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.scores import TokenScorer, inference_device, last_token
from rlhf.runtime.logging import get_logger
from rlhf.runtime.seeds import derive_seed
from rlhf.training.distributed import all_gather, rank, world_size
from rlhf.training.engine import Trainer
from rlhf.training.sft import engine_settings, load_rows
from rlhf.training.stage import Stage
from rlhf.training.supervised import steps_per_epoch, train_supervised

logger = get_logger(__name__)


def pair_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Bradley-Terry loss -log sigmoid(chosen - rejected), summed over pairs: [pairs], [pairs] -> scalar."""
    return -F.logsigmoid(chosen - rejected).sum()


def token_wise_loss(scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """DeepSpeed-Chat's loss: mean of -log sigmoid(r_t(chosen) - r_t(rejected)) over a window, summed over pairs.

    The window of a pair goes from the first position where its sequences differ to the end of the longer one, so the
    shorter one takes part with its padding. DeepSpeed-Chat finds the ends by its padding id; here they follow from the
    mask, which is the same where padding and EOS are two tokens.

    Args:
        scores: of every position, chosen answers first: [2 x pairs, seq] float32.
        ids: [2 x pairs, seq] int64, right-padded.
        mask: [2 x pairs, seq] int64, 1 on real tokens.
    """
    chosen, rejected = scores.chunk(2)
    chosen_ids, rejected_ids = ids.chunk(2)
    start = (chosen_ids != rejected_ids).int().argmax(1, keepdim=True)
    end = torch.maximum(*mask.sum(1, keepdim=True).chunk(2))
    columns = torch.arange(ids.shape[1], device=ids.device)
    window = (columns >= start) & (columns < end)
    return -((F.logsigmoid(chosen - rejected) * window).sum(1) / window.sum(1)).sum()


class PairPreference:
    """Bradley-Terry loss; accuracy compares the scores at the answers' EOS.

    Args:
        loss: `last_token` or `token_wise`.
    """

    statistics: tuple[str, ...] = ("accuracy",)

    def __init__(self, loss: str = "last_token") -> None:
        self._token_wise = loss == "token_wise"

    def lengths(self, corpus: Corpus) -> np.ndarray:
        """Tokens of the longer sequence of each pair, [rows]."""
        return corpus.lengths("prompt") + np.maximum(corpus.lengths("chosen"), corpus.lengths("rejected"))

    def count(self, corpus: Corpus, rows: np.ndarray) -> int:
        """Number of pairs."""
        return len(rows)

    def loss(self, model: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, list[float]]:
        """Summed loss, and the number of pairs ranked right (ties count one half)."""
        ids, mask = pair_inputs(corpus, rows, inference_device(model))
        scores = model(ids, mask)
        chosen, rejected = last_token(scores, mask).chunk(2)
        with torch.no_grad():
            margin = chosen - rejected
            right = (margin > 0).sum() + 0.5 * (margin == 0).sum()
        loss = token_wise_loss(scores, ids, mask) if self._token_wise else pair_loss(chosen, rejected)
        return loss, [float(right)]

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Loss in nats per pair, and accuracy."""
        return means


def pair_scores(model: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and the rejected answers: two tensors [rows] float32.

    Args:
        model: `TokenScorer`, or an engine around one.
        corpus: preference pairs.
        rows: rows of the corpus.
    """
    ids, mask = pair_inputs(corpus, rows, inference_device(model))
    chosen, rejected = last_token(model(ids, mask), mask).chunk(2)
    return chosen, rejected


def pair_inputs(corpus: Corpus, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompt + chosen, then of prompt + rejected, right-padded: two tensors [2 x rows, seq] int64."""
    answers = [corpus.chosen(row) for row in rows] + [corpus.rejected(row) for row in rows]
    prompts = [corpus.prompt(row) for row in rows] * 2
    padded = pad([np.concatenate(pair) for pair in zip(prompts, answers, strict=True)], corpus.pad_token_id, "right")
    return torch.from_numpy(padded.input_ids).to(device), torch.from_numpy(padded.attention_mask).to(device)


def score_statistics(model: nn.Module, corpus: Corpus, batch_size: int) -> tuple[float, float]:
    """Mean and standard deviation of the scores of all answers of a corpus, by all processes together.

    They are stored with the model and make its scores mean 0 and deviation 1 in PPO (Ziegler et al. 2019).

    Raises:
        UserError: all scores are equal; the reward model has learnt nothing.
    """
    rows, objective = np.arange(len(corpus)), PairPreference()
    own: list[float] = []
    with torch.no_grad():
        for micro in micro_batches(rows, objective.lengths(corpus), batch_size, rank(), world_size()):
            for scores in pair_scores(model, corpus, micro.rows):
                own += scores.tolist() if micro.weight else []
    gathered = np.concatenate([np.asarray(part, dtype=np.float64) for part in all_gather(own)])
    if gathered.std() == 0:
        raise UserError("the reward model gives every unseen answer the same score; check its data and learning rate")
    return float(gathered.mean()), float(gathered.std())


def train_reward(stage: Stage, model_folder: Path) -> None:
    """Run the reward stage.

    Args:
        stage: specification and paths.
        model_folder: Hugging Face folder of the language model to start from: pretrained, or of phase 1.

    Raises:
        UserError: the family has no score head, the LoRA pattern matches nothing, or no pair is short enough.
    """
    settings: dict[str, Any] = stage.settings
    objective = PairPreference(settings["loss"])
    with stage.memory.phase("load"):
        train, unseen = load_rows(stage, objective, "reward")
        tokenizer = load_tokenizer(model_folder)
        head_seed = derive_seed(stage.seed, "score head")
        model = load_reward_backbone(model_folder, settings["dtype"], head_seed, settings["dropout"])
        adapted = add_lora(model, settings, "reward")
        steps = settings["num_train_epochs"] * steps_per_epoch(len(train), settings["global_batch_size"])
        trainer = Trainer(TokenScorer(model), settings, engine_settings(stage), steps)
    with stage.memory.phase("train"), stage.metrics(steps) as metrics:
        train_supervised(trainer, objective, train, unseen, settings, stage.execution, stage.seed, metrics)
    with stage.memory.phase("normalise"), trainer.evaluation():
        batch_size = stage.execution["per_device_eval_batch_size"]
        model.config.reward_mean, model.config.reward_std = score_statistics(trainer.engine, unseen, batch_size)
    logger.info("unseen scores: mean %.4f, deviation %.4f", model.config.reward_mean, model.config.reward_std)
    inputs = {"tokenizer": train.tokenizer_fingerprint}
    rows = {"train": len(train), "eval": len(unseen)}
    stage.finish(model, adapted, tokenizer, inputs, rows=rows, **trainer.facts())
