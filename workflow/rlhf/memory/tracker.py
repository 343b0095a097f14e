"""Live tensor bytes over the course of a program, on real or fake tensors alike.

Every storage that an operation returns is counted from then on until it is freed. The events are kept, so that what a
storage was (a weight, a gradient, part of a cache) can be said after the fact, and any span can be asked for its peak.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

GRANULARITY = 512  # bytes: what the CUDA caching allocator rounds requests up to
WEIGHTS, GRADIENTS, ACTIVATIONS, LOGITS, CACHE = "weights", "gradients", "activations", "logits", "kv_cache"
KINDS = (WEIGHTS, GRADIENTS, ACTIVATIONS, LOGITS, CACHE)


@dataclass(frozen=True)
class Peak:
    """The largest sum of live bytes in one span of a program, by kind at that instant."""

    kinds: dict[str, int]

    @property
    def total(self) -> int:
        """Sum over all kinds."""
        return sum(self.kinds.values())


class Tracker(TorchDispatchMode):
    """Follows the storages of all tensors that operations return.

    On fake tensors, reading a number (`item`) gives 0, so that logging inside a loss does not stop the trace.

    Args:
        vocabulary: tensors whose last dimension has this length are logits.
        place: name of the present place in the program, asked at each operation; spans are grouped by it.
    """

    def __init__(self, vocabulary: int = 0, place: Callable[[], str] = str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary, self._place = vocabulary, place
        self._live: dict[int, int] = {}  # address of a storage -> its number
        self._references: dict[int, Any] = {}
        self._kinds: list[int] = []  # of each storage, by number
        self._bytes: list[int] = []
        self._events: list[tuple[int, int, int]] = []  # number of the storage, +1 or -1, number of the place
        self._places: dict[str, int] = {}
        self._here = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        self._here = self._places.setdefault(self._place(), len(self._places))
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
            return 0.0 if args[0].is_floating_point() else 0
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Say of what kind the storages of some tensors are; those that are not counted yet are from now on."""
        for tensor in tensors:
            self._add(tensor)
            number = self._live.get(tensor.untyped_storage()._cdata)
            if number is not None:
                self._kinds[number] = KINDS.index(kind)

    def live(self) -> int:
        """Bytes that are live now."""
        return sum(self._bytes[number] for number in tuple(self._live.values()))  # other threads free tensors too

    def peaks(self, gradient_share: float = 1.0) -> dict[str, Peak]:
        """Place -> its peak, in the order in which the places were first seen.

        Args:
            gradient_share: part of the finished gradients that stays, where an engine partitions them.
        """
        numbers, signs, places = (np.array(column, dtype=np.int64) for column in zip(*self._events, strict=True))
        kinds, sizes = np.array(self._kinds), np.array(self._bytes)
        changes = np.zeros((len(self._events), len(KINDS)), dtype=np.int64)
        changes[np.arange(len(changes)), kinds[numbers]] = signs * sizes[numbers]
        levels = changes.cumsum(axis=0)
        levels[:, KINDS.index(GRADIENTS)] = np.ceil(levels[:, KINDS.index(GRADIENTS)] * gradient_share)
        totals = levels.sum(axis=1)
        found = {}
        for name, place in self._places.items():
            (instants,) = np.nonzero(places == place)
            if len(instants):
                level = levels[instants[totals[instants].argmax()]]
                found[name] = Peak(dict(zip(KINDS, level.tolist(), strict=True)))
        return found

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, -(-storage.nbytes() // GRANULARITY) * GRANULARITY
        if address in self._live or size == 0 or tensor.is_meta:  # a meta tensor has a size, but no memory
            return
        number = len(self._bytes)
        wide = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
        self._kinds.append(KINDS.index(LOGITS if wide else ACTIVATIONS))
        self._bytes.append(size)
        self._live[address] = number
        self._events.append((number, 1, self._here))

        def freed(_: Any) -> None:
            if self._live.get(address) == number:
                del self._live[address], self._references[address]
                self._events.append((number, -1, self._here))

        self._references[address] = weakref.ref(storage, freed)


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)
