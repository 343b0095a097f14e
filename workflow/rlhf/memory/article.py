"""The memory formula of the article that this workflow follows, under its own name.

It is right at the article's own point only: it charges 6 f and 2 a s where the code keeps 2 f and 6 a s, and there
a s = f. It has no logits, optimizer, adapters, buffers or context, and takes for granted that nothing is recomputed.
"""

from __future__ import annotations

from rlhf.memory.closed_form import ActivationShape


def article_activations(shape: ActivationShape) -> int:
    """T (8 h + 2 a s + 10 h + 6 f) L bytes: 19.53 GiB for OPT-13B at batch 4, length 512."""
    each = 18 * shape.width + 2 * shape.heads * shape.length + 6 * shape.ffn
    return shape.tokens * each * shape.layers


def article_weights(parameters: int) -> int:
    """Two bytes for each parameter: 23.94 GiB for OPT-13B."""
    return 2 * parameters
