"""Ready mappings for public datasets: what the configuration leaves unset comes from here.

Formats and splits follow DeepSpeed-Chat's dataset classes (`dschat/utils/data/raw_datasets.py`): what these put into a
text, spaces too, is in the formats here, and nothing is put in elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlhf.config.sources import DatasetSource
from rlhf.config.specification import ResolvedDataset
from rlhf.errors import UserError

_HUMAN = " Human: {prompt} Assistant:"
_SPACED = " {answer}"


@dataclass(frozen=True)
class ReadyMapping:
    """What is known of a public dataset; entries are those of the configuration.

    Attributes:
        remove: a pattern deleted from answers.
    """

    shape: str
    eval_split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    prompt_format: str | None = None
    answer_format: str | None = None
    remove: str | None = None


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a source are read.

    Attributes:
        shape: one of `rlhf.data.shapes.SHAPES`.
        columns: role -> column, where it is not the shape's own.
        prompt_format, answer_format: templates, or None for the shape's own.
        remove: a pattern deleted from answers.
        turns: prompts are kept as the turns of a chat, which need no `Human:` and `Assistant:`.
        each_turn: every assistant turn of a conversation is an answer, not the last one alone.
    """

    shape: str
    columns: dict[str, str] = field(default_factory=dict)
    prompt_format: str | None = None
    answer_format: str | None = None
    remove: str | None = None
    turns: bool = False
    each_turn: bool = False


KNOWN: dict[str, ReadyMapping] = {
    "Dahoas/rm-static": ReadyMapping(shape="pairs", eval_split="test"),
    "Dahoas/full-hh-rlhf": ReadyMapping(shape="pairs", eval_split="test"),
    "Dahoas/synthetic-instruct-gptj-pairwise": ReadyMapping(shape="pairs", prompt_format=_HUMAN, answer_format=_SPACED),
    "yitingxie/rlhf-reward-datasets": ReadyMapping(
        shape="pairs",
        eval_split="test",
        prompt_format="{prompt}Assistant:",
        columns={"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
        remove="(?s)^.*Assistant:",  # which the prompt has then
    ),
    "Anthropic/hh-rlhf": ReadyMapping(shape="dialogues", eval_split="test"),
    "openai/webgpt_comparisons": ReadyMapping(
        shape="comparisons",
        columns={
            "prompt": "question.full_text",
            "answer_0": "answer_0",
            "answer_1": "answer_1",
            "score_0": "score_0",
            "score_1": "score_1",
        },
        prompt_format=_HUMAN,
        answer_format=_SPACED,
        remove=r"\[\d+(?:, ?\d+)*\]",
    ),
    "stanfordnlp/SHP": ReadyMapping(
        shape="comparisons",
        eval_split="validation",
        columns={
            "prompt": "history",
            "answer_0": "human_ref_B",
            "answer_1": "human_ref_A",
            # labels is 1 where A is preferred
            "score_1": "labels",
        },
        prompt_format=_HUMAN,
        answer_format=_SPACED,
    ),
    "pvduy/sharegpt_alpaca_oa_vicuna_format": ReadyMapping(
        shape="instructions",
        eval_split="test",
        columns={"instruction": "prompt", "output": "label"},
        prompt_format="{instruction}",
        answer_format=_SPACED,
    ),
}
UNKNOWN = ReadyMapping("pairs")


def row_format(settings: ResolvedDataset) -> RowFormat:
    """How a dataset's rows are read, with the ready mapping of a known hub dataset in the place of what is unset."""
    known = _mapping(settings)
    formats = UNKNOWN if settings.turns else known
    return RowFormat(
        shape=settings.shape or known.shape,
        columns=known.columns | settings.columns,
        prompt_format=settings.prompt_format or formats.prompt_format,
        answer_format=settings.answer_format or formats.answer_format,
        remove=known.remove,
        turns=bool(settings.turns),
        each_turn=settings.assistant_turns == "each",
    )


def mapped_source(settings: ResolvedDataset, place: str) -> DatasetSource:
    """Where a dataset comes from, with the unseen split of a known hub dataset where none is given.

    Args:
        settings: of the dataset.
        place: its configuration path, for messages.

    Raises:
        UserError: a share to hold out is given for a dataset of which unseen rows are known.
    """
    source, known = settings.source, _mapping(settings).eval_split
    if known is not None and source.sets("eval_share"):
        raise UserError(
            f"{place}.source.eval_share: no effect on {source.hub}: its unseen rows are split {known!r}; leave it out"
        )
    return source.model_copy(update={"eval_split": source.eval_split or known})


def _mapping(settings: ResolvedDataset) -> ReadyMapping:
    return KNOWN.get(settings.source.hub or "", UNKNOWN)
