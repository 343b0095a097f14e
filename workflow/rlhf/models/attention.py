"""Several independent texts in one sequence: the attention mask that keeps them apart, and their positions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.models.loading import accepts

PADDING = -1
PROBE_LENGTHS = (4, 6, 5)
REFUSALS = (IndexError, RuntimeError, TypeError, ValueError)


def segment_mask(segments: Tensor, dtype: torch.dtype, shared: int | None = None) -> Tensor:
    """Additive mask under which a token attends to the earlier tokens of its own segment, and of the shared one.

    Padding attends to itself (and to the shared segment), because a row without any entry would give NaN.

    Args:
        segments: number of the segment of each token, -1 on padding, [batch, seq] int64.
        dtype: floating type of the model.
        shared: segment that all others may attend to, such as a prompt before its answers; None: no such segment.

    Returns:
        0 where attention is allowed, the type's minimum elsewhere, [batch, 1, seq, seq] in `dtype`.
    """
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    visible = query == key
    if shared is not None:
        visible = visible | (key == shared)
    allowed = (visible & (key != PADDING)).tril()
    allowed = allowed | torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)


def segment_positions(segments: Tensor, shared: int | None = None) -> Tensor:
    """Positions counted within each segment; after a shared segment, the others go on from its length.

    Args:
        segments: number of the segment of each token, -1 on padding, [batch, seq] int64.
        shared: segment that all others continue; None: no such segment.

    Returns:
        [batch, seq] int64; 0 on padding.
    """
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    positions = same.tril(-1).sum(-1)
    if shared is not None:
        positions = positions + (segments != shared) * (segments == shared).sum(-1, keepdim=True)
    return positions.masked_fill(segments == PADDING, 0)


def supports_segments(model: PreTrainedModel, longest: int) -> bool:
    """Whether a model computes each segment of a packed sequence as if it stood alone, with and without a shared one.

    Tried on random tokens, so that a family needs no entry in a list. A ready mask replaces a sliding window, which a
    short trial cannot show, so a window must not be narrower than a segment.

    Args:
        model: causal language model or the transformer below its head, its weights whole while they are used.
        longest: tokens of the longest segment, the shared one before it included.
    """
    if not accepts(model, "position_ids") or any(window < longest for window in _windows(model)):
        return False
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return all(_keeps_apart(model, shared) for shared in (None, 0))
    except REFUSALS:  # how a family says that it cannot read such a mask is its own affair
        return False
    finally:
        model.train(training)


def _windows(model: PreTrainedModel) -> list[int]:
    """Widths of local attention, in tokens."""
    entries = model.config.get_text_config().to_dict().items()
    windows = [value for name, value in entries if name.endswith(("window", "window_size"))]
    return [value for value in windows if isinstance(value, int) and value > 1]  # 0 and False: not in use


def _keeps_apart(model: PreTrainedModel, shared: int | None) -> bool:
    """Compare three texts packed and apart, and the last with another one before it."""
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(PROBE_LENGTHS)
    texts = torch.randint(vocabulary, (int(lengths.sum()),), generator=generator)
    segments = torch.arange(len(lengths)).repeat_interleave(lengths)
    changed = torch.where(segments == 1, (texts + 1) % vocabulary, texts)
    packed, beside = (_logits(model, ids, segments, shared) for ids in (texts, changed))
    exact = model.dtype == torch.float32
    # A leak may hide in the rounding of half precision. But what is masked counts exactly nothing there, too.
    untouched = exact or torch.equal(packed[segments != 1], beside[segments != 1])
    tolerance = 1e-4 if exact else 0.05
    return untouched and all(
        float((packed[segments == number] - alone).abs().max()) <= tolerance * float(alone.std())
        for number, alone in enumerate(_apart(model, texts, segments, shared))
    )


def _apart(model: PreTrainedModel, texts: Tensor, segments: Tensor, shared: int | None) -> Iterator[Tensor]:
    """Logits of each segment, computed with nothing but itself and the shared segment: [length, vocab]."""
    for number in range(len(PROBE_LENGTHS)):
        present = (segments == number) | (segments == shared) if shared is not None else segments == number
        alone = _logits(model, texts[present], torch.zeros_like(texts[present]), None)
        yield alone[segments[present] == number]


def _logits(model: PreTrainedModel, ids: Tensor, segments: Tensor, shared: int | None) -> Tensor:
    """[seq] ids and segments -> logits, or hidden states where there is no head: [seq, width] float32 on the CPU."""
    ids, segments = ids.unsqueeze(0).to(model.device), segments.unsqueeze(0).to(model.device)
    mask, positions = segment_mask(segments, model.dtype, shared), segment_positions(segments, shared)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    hidden: Tensor = output[0][0]
    return hidden.float().cpu()
