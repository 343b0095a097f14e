"""Phase 2: a reward model from preferences among the answers to a prompt.

Shape suffixes are those of `rlhf.models.scores`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config.stages import RewardExecution
from rlhf.data.batching import micro_batches, pad
from rlhf.data.comparisons import compare
from rlhf.data.corpus import Corpus
from rlhf.errors import UserError
from rlhf.models.attention import PADDING, segment_mask, segment_positions, supports_segments
from rlhf.models.loading import load_reward_backbone, load_tokenizer
from rlhf.models.lora import add_lora
from rlhf.models.scores import TokenScorer, inference_device, last_token
from rlhf.runtime.logging import get_logger
from rlhf.runtime.seeds import derive_seed
from rlhf.training.delivery import reward_delivery
from rlhf.training.distributed import all_gather, rank, world_size
from rlhf.training.engine import Trainer, partitioned_loading
from rlhf.training.frame import load_corpora, supervised_engine, train_supervised
from rlhf.training.stage import RewardStage
from rlhf.training.supervised import total_steps
from rlhf.training.weights import whole_while_used

logger = get_logger(__name__)

PROMPT = 0


def pair_loss(better: Tensor, worse: Tensor, margin: Tensor) -> Tensor:
    """Bradley-Terry loss with a margin (Touvron et al. 2023, "Llama 2"): -log sigmoid(better - worse - margin).

    Args:
        better, worse, margin: [pairs] float32.

    Returns:
        [pairs] float32.
    """
    return -F.logsigmoid(better - worse - margin)


def token_wise_loss(better: Tensor, worse: Tensor, margin: Tensor, window: Tensor) -> Tensor:
    """DeepSpeed-Chat's loss: the mean of `pair_loss` over the positions of a window.

    Args:
        better, worse: scores of every position, [pairs, seq] float32.
        margin: [pairs] float32, the same at each position.
        window: positions that count, [pairs, seq] bool.

    Returns:
        [pairs] float32.
    """
    losses_PS = pair_loss(better, worse, margin.unsqueeze(1))
    return (losses_PS * window).sum(1) / window.sum(1)


def difference_window(better: Tensor, worse: Tensor, better_mask: Tensor, worse_mask: Tensor) -> Tensor:
    """Positions from the first at which two sequences differ to the end of the longer one.

    So the shorter one takes part with its padding. DeepSpeed-Chat finds the ends by its padding id; here they follow
    from the mask, which is the same where padding and EOS are two tokens.

    Args:
        better, worse: right-padded ids, [pairs, seq] int64.
        better_mask, worse_mask: 1 on real tokens, [pairs, seq] int64.

    Returns:
        [pairs, seq] bool.
    """
    start_P1 = (better != worse).int().argmax(1, keepdim=True)
    end_P1 = torch.maximum(better_mask.sum(1, keepdim=True), worse_mask.sum(1, keepdim=True))
    columns_S = torch.arange(better.shape[1], device=better.device)
    return (columns_S >= start_P1) & (columns_S < end_P1)


class GroupPreference:
    """Bradley-Terry loss on all comparisons among the answers to a prompt (Ouyang et al. 2022, "InstructGPT").

    The answers of a row are a group: each is scored once, and the loss of the group is the mean over its pairs. A plain
    pair is a group of two. Accuracy compares the scores at the answers' EOS, whatever the loss.

    Args:
        loss: `last_token` or `token_wise`.
        margin_coefficient: factor of the margin that the data gives for a pair; a pair without one has margin 0.
        share_prompt: compute the prompt of a group once; not with `token_wise`, which compares padded sequences.
    """

    statistics: tuple[str, ...] = ("right", "ties", "pairs")
    capacity: int | None = None

    def __init__(self, loss: str = "last_token", margin_coefficient: float = 0.0, share_prompt: bool = False) -> None:
        self._token_wise = loss == "token_wise"
        self._coefficient = margin_coefficient
        self._share_prompt = share_prompt

    def usable(self, corpus: Corpus) -> np.ndarray:
        """The rows whose answers differ as tokens, [rows] bool."""
        return ~corpus.has_equal_answers()

    def lengths(self, corpus: Corpus) -> np.ndarray:
        """Tokens of the longest sequence of each group, [rows]."""
        lengths: np.ndarray = corpus.lengths("prompt") + corpus.longest_answers()
        return lengths

    def count(self, corpus: Corpus, rows: np.ndarray) -> int:
        """Number of groups: each counts once in the loss, however many pairs it has."""
        return len(rows)

    def scores(self, model: nn.Module, corpus: Corpus, rows: np.ndarray) -> Tensor:
        """Score of every answer at its EOS, over the answers of all rows one after the other: [answers] float32.

        Args:
            model: `TokenScorer`, or an engine around one.
            corpus: groups of answers.
            rows: rows of the corpus.
        """
        if self._share_prompt:
            return _scores_after_shared_prompt(model, corpus, rows)
        ids_AS, mask_AS = answer_inputs(corpus, rows, inference_device(model))
        return last_token(model(ids_AS, mask_AS), mask_AS)

    def loss(self, model: nn.Module, corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, list[float]]:
        """Summed loss of the groups, the number of pairs ranked right (ties count one half), of ties, and of pairs."""
        device, pairs = inference_device(model), compare(corpus, rows)
        margin_P = torch.from_numpy(np.nan_to_num(pairs.margin) * np.float32(self._coefficient)).to(device)
        better_P, worse_P = (torch.from_numpy(places).to(device) for places in (pairs.better, pairs.worse))
        if self._token_wise:
            ids_AS, mask_AS = answer_inputs(corpus, rows, device)
            table_AS: Tensor = model(ids_AS, mask_AS)
            window_PS = difference_window(ids_AS[better_P], ids_AS[worse_P], mask_AS[better_P], mask_AS[worse_P])
            losses_P = token_wise_loss(table_AS[better_P], table_AS[worse_P], margin_P, window_PS)
            scores_A = last_token(table_AS, mask_AS)
        else:
            scores_A = self.scores(model, corpus, rows)
            losses_P = pair_loss(scores_A[better_P], scores_A[worse_P], margin_P)
        ahead_P = (scores_A[better_P] - scores_A[worse_P]).detach()
        ties = float((ahead_P == 0).sum())
        counts = [float((ahead_P > 0).sum()) + 0.5 * ties, ties, float(len(ahead_P))]
        return (losses_P * torch.from_numpy(pairs.weights()).to(device)).sum(), counts

    def questions(self, corpus: Corpus) -> Iterator[tuple[np.ndarray, int]]:
        """Questions to a delivered model: ids of prompt and answer, [length] int64, and how many are of the prompt."""
        for row in range(len(corpus)):
            prompt = corpus.prompt(row)
            for answer in corpus.answers(row):
                yield np.concatenate([prompt, answer]), len(prompt)

    def summary(self, means: dict[str, float]) -> dict[str, float]:
        """Loss in nats per pair, each group counting once, and the shares of pairs that are ranked right and tied."""
        pairs = means["pairs"]
        return {"loss": means["loss"], "accuracy": means["right"] / pairs, "tie_share": means["ties"] / pairs}


def answer_inputs(corpus: Corpus, rows: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompt + answer, for each answer of each row, right-padded: two tensors [answers, seq] int64."""
    sequences = [np.concatenate([corpus.prompt(row), answer]) for row in rows for answer in corpus.answers(row)]
    padded = pad(sequences, corpus.pad_token_id, "right")
    return torch.from_numpy(padded.input_ids).to(device), torch.from_numpy(padded.attention_mask).to(device)


def shared_inputs(corpus: Corpus, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Each prompt once, followed by all its answers.

    Returns:
        ids and segments ([rows, seq] int64; 0 on the prompt, 1, 2, ... on the answers, -1 on padding), and the
        places of the answers' ends in the flattened table ([answers] int64).
    """
    texts = [[corpus.prompt(row), *corpus.answers(row)] for row in rows]
    padded = pad([np.concatenate(parts) for parts in texts], corpus.pad_token_id, "right")
    segments = np.full_like(padded.input_ids, PADDING)
    ends = []
    for place, parts in enumerate(texts):
        lengths = np.array([len(part) for part in parts])
        segments[place, : lengths.sum()] = np.repeat(PROMPT + np.arange(len(parts)), lengths)
        ends.append(place * segments.shape[1] + lengths.cumsum()[1:] - 1)
    return torch.from_numpy(padded.input_ids), torch.from_numpy(segments), torch.from_numpy(np.concatenate(ends))


def _scores_after_shared_prompt(model: nn.Module, corpus: Corpus, rows: np.ndarray) -> Tensor:
    """As `GroupPreference.scores`; answers see their prompt and themselves only, at the positions they have alone."""
    device, dtype = inference_device(model), next(model.parameters()).dtype
    ids_GS, segments_GS, ends_A = (part.to(device) for part in shared_inputs(corpus, rows))
    table_GS = model(ids_GS, segment_mask(segments_GS, dtype, PROMPT), segment_positions(segments_GS, PROMPT))
    scores_A: Tensor = table_GS.flatten()[ends_A]
    return scores_A


def score_statistics(
    model: nn.Module, corpus: Corpus, objective: GroupPreference, batch_size: int
) -> tuple[float, float]:
    """Mean and standard deviation of the scores of all answers of a corpus, by all processes together.

    Every answer of a group counts once. The two are stored with the model and make its scores mean 0 and deviation 1
    in PPO (Ziegler et al. 2019).

    Raises:
        UserError: all scores are equal; the reward model has learnt nothing.
    """
    rows = np.arange(len(corpus))
    own: list[float] = []
    with torch.no_grad():
        for micro in micro_batches(rows, objective.lengths(corpus), batch_size, rank(), world_size()):
            scores = objective.scores(model, corpus, micro.rows).tolist()
            own += scores if micro.weight else []
    gathered = np.concatenate([np.asarray(part, dtype=np.float64) for part in all_gather(own)])
    if gathered.std() == 0:
        raise UserError("the reward model gives every unseen answer the same score; check its data and learning rate")
    return float(gathered.mean()), float(gathered.std())


def require_margins(corpus: Corpus, coefficient: float) -> None:
    """Refuse margins that no row has; rows without one among others are counted in the log.

    Raises:
        UserError: `margin_coefficient` is above 0, and no pair has a margin.
    """
    if coefficient == 0:
        return
    missing = np.isnan(compare(corpus, np.arange(len(corpus))).margin)
    if missing.all():
        raise UserError(
            f"reward.margin_coefficient: {coefficient}, but no pair of the data has a margin; map a column to `margin` "
            "(pairs) or `ratings` (ranked), or set it to 0"
        )
    if missing.any():
        logger.warning("%d of %d training pairs have no margin and get 0", missing.sum(), len(missing))


def require_segments(model: PreTrainedModel, execution: RewardExecution, max_seq_len: int) -> None:
    """Refuse a shared prompt where the family cannot keep the answers of a sequence apart.

    Raises:
        UserError: naming the key.
    """
    if not execution.share_prompt:
        return
    with whole_while_used(model):
        apart = supports_segments(model.base_model, max_seq_len)
    if not apart:
        raise UserError(
            f"reward.execution.share_prompt: {model.config.model_type} cannot keep the answers of one sequence apart "
            "by mask and positions; set it to false"
        )


def train_reward(stage: RewardStage, model_folder: Path) -> None:
    """Run the reward stage.

    Args:
        stage: specification and paths.
        model_folder: Hugging Face folder of the language model to start from: pretrained, or of phase 1.

    Raises:
        UserError: the family has no score head or cannot share a prompt, the LoRA pattern matches nothing, no group is
            short enough, or no pair has the margin that is asked for.
    """
    settings = stage.settings
    objective = GroupPreference(settings.loss, settings.margin_coefficient, stage.execution.share_prompt)
    with stage.memory.phase("load"):
        corpora = load_corpora(stage, objective, "reward")
        require_margins(corpora.train, settings.margin_coefficient)
        tokenizer = load_tokenizer(model_folder)
        if corpora.train.chat_template is not None:
            tokenizer.chat_template = (
                corpora.train.chat_template
            )  # saved with the model, so that others ask it as it learnt
        head_seed = derive_seed(stage.seed, "score head")
        zero3 = partitioned_loading(settings, supervised_engine(stage))
        model = load_reward_backbone(model_folder, settings.dtype, head_seed, settings.dropout, zero3)
        require_segments(model, stage.execution, settings.max_seq_len)
        adapted = add_lora(model, settings, "reward")
        scorer = TokenScorer(model)
        trainer = Trainer(scorer, settings, supervised_engine(stage), total_steps(corpora.train, settings))
    facts = train_supervised(stage, trainer, objective, corpora)
    with stage.memory.phase("normalise"), trainer.evaluation():
        batch_size = stage.execution.per_device_eval_batch_size
        scorer.mean, scorer.std = score_statistics(trainer.engine, corpora.unseen, objective, batch_size)
        model.config.reward_mean, model.config.reward_std = scorer.mean, scorer.std
    logger.info("unseen scores: mean %.4f, deviation %.4f", scorer.mean, scorer.std)
    delivery = reward_delivery(scorer, settings.dtype, objective.questions(corpora.unseen))
    stage.finish(model, adapted, tokenizer, delivery, corpora.inputs, **facts)
