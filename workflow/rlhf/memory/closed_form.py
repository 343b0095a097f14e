"""Saved activations and logits in closed form: the explanation and cross-check of a dry run.

T = batch x sequence tokens; all results are bytes. Exact for transformers 5 in 16-bit training without adapters;
a test compares them with dry runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.errors import UserError


@dataclass(frozen=True)
class ActivationShape:
    """What activations depend on.

    Args:
        family: transformers' model_type.
        layers: L.
        width: h.
        heads: a.
        ffn: f.
        vocabulary: V.
        batch: b, sequences of a micro-batch.
        length: s, tokens of a sequence.
        attention: `sdpa` (fused, with a padding mask) or `eager`.
    """

    family: str
    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int
    batch: int
    length: int
    attention: str = "sdpa"

    @property
    def tokens(self) -> int:
        """T: tokens of a micro-batch."""
        return self.batch * self.length


# family -> bytes per token and width, per token and inner width, per head and score in eager attention. ReLU shares its
# output with the next linear; SwiGLU keeps four inner tensors, GPT-2's GELU five, because it is computed step by step.
COEFFICIENTS = {"opt": (16, 2, 6), "llama": (24, 8, 6), "gpt2": (16, 10, 2), "gpt_neox": (20, 4, 6)}
FUSED_COPIES = {"gpt_neox": 6}  # its eager attention works on views of one query-key-value tensor


def saved_by_layer(shape: ActivationShape) -> dict[str, int]:
    """Bytes that one decoder layer keeps for the backward pass, without dropout, by what they are.

    Raises:
        UserError: there is no closed form for the family.
    """
    if shape.family not in COEFFICIENTS:
        raise UserError(f"no closed form for {shape.family}; known: {', '.join(COEFFICIENTS)}")
    wide, inner, _ = COEFFICIENTS[shape.family]
    if shape.attention == "eager":
        wide -= FUSED_COPIES.get(shape.family, 0)
    return {
        "linears, norms, attention inputs": wide * shape.tokens * shape.width,
        "feed-forward": inner * shape.tokens * shape.ffn,
        "attention": attention_matrix(shape),
        "norm statistics": 8 * shape.tokens,  # mean and deviation of two norms; twice this on CUDA
    }


def attention_matrix(shape: ActivationShape) -> int:
    """What attention keeps beside queries, keys, values and outputs.

    Fused: a log-sum-exp of each head and token in fp32, and the additive mask of the layer. Eager: the softmax in fp32
    and its 16-bit copy; GPT-2's softmax stays in 16 bit.
    """
    tokens, heads, length = shape.tokens, shape.heads, shape.length
    if shape.attention == "sdpa":
        return 4 * heads * tokens + 2 * length * tokens
    return COEFFICIENTS[shape.family][2] * heads * length * tokens


def checkpointed_by_layer(shape: ActivationShape) -> int:
    """With gradient checkpointing, a layer keeps its 16-bit input."""
    return 2 * shape.tokens * shape.width


def activations(shape: ActivationShape, checkpointing: bool) -> int:
    """Bytes kept for the backward pass by all layers; with checkpointing, their inputs and all of the layer in work."""
    layer = sum(saved_by_layer(shape).values())
    if not checkpointing:
        return shape.layers * layer
    return shape.layers * checkpointed_by_layer(shape) + layer


def cross_entropy(shape: ActivationShape, kept: int = 0) -> int:
    """Logits at the loss: 16-bit logits of T positions, their fp32 copy, its softmax and a gradient.

    Args:
        shape: shape of the model and the batch.
        kept: positions of each sequence whose logits are computed; 0: all.
    """
    positions = shape.batch * (kept or shape.length)
    return 14 * positions * shape.vocabulary
