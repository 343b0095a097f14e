"""Ready mappings for public datasets: what the configuration leaves unset comes from `rlhf.data.published`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from rlhf.config.sources import DatasetSource
from rlhf.config.specification import ResolvedDataset
from rlhf.data.published import KNOWN, MISNAMED, PARTS, RENAMED, UNKNOWN, ReadyMapping
from rlhf.errors import UserError
from rlhf.runtime.logging import get_logger

logger = get_logger(__name__)

PLACES = ("revision", "name", "data_dir", "train_split", "eval_split")


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a source are read.

    Attributes:
        shape: one of `rlhf.data.shapes.SHAPES`.
        columns: role -> column, where it is not the shape's own.
        prompt_format, answer_format: templates, or None for the shape's own.
        remove: patterns that are deleted from answers, one after the other.
        turns: prompts are kept as the turns of a chat, which need no `Human:` and `Assistant:`.
        each_turn: every assistant turn of a conversation is an answer, not the last one alone.
        replace: what is replaced in prompts, and by what, one after the other.
    """

    shape: str
    columns: dict[str, str] = field(default_factory=dict)
    prompt_format: str | None = None
    answer_format: str | None = None
    remove: tuple[str, ...] = ()
    turns: bool = False
    each_turn: bool = False
    replace: tuple[tuple[str, str], ...] = ()


def row_format(settings: ResolvedDataset) -> RowFormat:
    """How a dataset's rows are read, with the ready mapping of a known hub dataset in the place of what is unset.

    A shape that is set and is not the mapping's takes its columns and formats from the configuration alone.
    """
    known = _mapping(settings)
    if settings.shape not in (None, known.shape):
        known = UNKNOWN
    prompt_format, answer_format = (UNKNOWN if settings.turns else known).formats
    return RowFormat(
        shape=settings.shape or known.shape,
        columns=known.columns | settings.columns,
        prompt_format=settings.prompt_format or prompt_format,
        answer_format=settings.answer_format or answer_format,
        remove=known.remove,
        turns=bool(settings.turns),
        each_turn=settings.assistant_turns == "each",
        replace=known.replace,
    )


def mapped_source(settings: ResolvedDataset, place: str) -> DatasetSource:
    """Where a dataset comes from: its name of today, and what is known of it in the place of what is unset.

    Args:
        settings: of the dataset.
        place: its configuration path, for messages.

    Raises:
        UserError: a share to hold out is given for a dataset of which unseen rows are known, a benchmark would be
            trained on, or the name of a known dataset lacks its owner.
    """
    source, known = settings.source, _mapping(settings)
    _require_owner(source.hub, f"{place}.source.hub")
    if known.eval_split is not None and source.sets("eval_share"):
        raise UserError(
            f"{place}.source.eval_share: no effect on {source.hub}: its unseen rows are split {known.eval_split!r}; "
            "leave it out"
        )
    if known.benchmark and not settings.evaluation_only:
        raise UserError(
            f"{place}: {source.hub} is a benchmark, and its rows would be trained on; set {place}.evaluation_only: true"
        )
    changes = {key: getattr(known, key) for key in PLACES if not source.sets(key)}
    if source.hub in RENAMED:
        changes["hub"] = RENAMED[source.hub]
        logger.warning("%s: the hub calls it %s now; write that", source.hub, changes["hub"])
    return source.model_copy(update={key: value for key, value in changes.items() if value is not None})


def largest_bad_share(settings: ResolvedDataset) -> float:
    """Largest share of unusable rows: the configuration's, or what a known dataset needs where that is unset."""
    known = _mapping(settings).max_bad_share
    default = type(settings).model_fields["max_bad_share"].default
    return known if known is not None and settings.max_bad_share == default else settings.max_bad_share


def _mapping(settings: ResolvedDataset) -> ReadyMapping:
    hub = settings.source.hub or ""
    hub = RENAMED.get(hub, hub)
    for part in (settings.source.data_dir, settings.source.name):
        if part is not None and (hub, part) in PARTS:
            return PARTS[hub, part]
    return KNOWN.get(hub, UNKNOWN)


def _require_owner(hub: str | None, place: str) -> None:
    """Refuse a known dataset's name without its owner; of others, the hub knows whether they have one."""
    if hub is None or "/" in hub or hub in RENAMED:
        return
    by_last_part = {name.split("/")[1].lower(): name for name in KNOWN} | MISNAMED
    near = difflib.get_close_matches(hub.lower(), by_last_part, n=1, cutoff=0.8)
    if near:
        name = by_last_part[near[0]]
        raise UserError(f"{place}: {hub!r}: a dataset's name on the hub begins with its owner; write {name}")
