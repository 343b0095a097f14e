"""Named random seeds: every source of randomness has its own, derived from the stage's one seed."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for one purpose, for example `derive_seed(seed, "shuffle", epoch)`.

    Args:
        seed: the stage's seed.
        names: what it is for; different names give independent seeds.

    Returns:
        An integer in [0, 2**63), a SHA-256 of the arguments, equal on every machine.
    """
    text = "\0".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (libraries draw from them unasked)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
