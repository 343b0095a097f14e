"""What an evaluation has found so far, kept in its state folder, so that a killed one goes on where it was.

Below state/<stage>/<id>/found/<fingerprint>/:

    <pass>/<number>-<rank>.jsonl    of each micro-batch a line, as soon as it is computed
    <pass>.jsonl                    one line with all of them, when the pass is through

A line begins with the checksum of the rest, so that what a killed process has cut short is not read. The fingerprint
is that of the specification and of the code: what another version of the code has found is left alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from rlhf.files import write_text
from rlhf.ppo.samples import Answer
from rlhf.runtime.logging import get_logger
from rlhf.training.distributed import Compute, Remember, agreed, all_gather, rank, together

logger = get_logger(__name__)

FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Codec(Generic[FoundT]):
    """How what is found of a row is written as JSON, and read from it unchanged."""

    encode: Callable[[FoundT], Any]
    decode: Callable[[Any], FoundT]


def arrays(dtype: type[np.floating[Any]]) -> Codec[np.ndarray]:
    """Of arrays of one type."""
    return Codec(lambda array: array.tolist(), lambda values: np.array(values, dtype))


NUMBERS: Codec[float] = Codec(float, float)
ANSWERS: Codec[Answer] = Codec(
    lambda answer: [answer.ids.tolist(), answer.logprobs.tolist(), answer.finished],
    lambda values: Answer(np.array(values[0], np.int64), np.array(values[1], np.float32), values[2]),
)


class Found:
    """The passes of an evaluation, by name.

    Args:
        folder: for this specification and code.
        between: called before each micro-batch by all processes.
    """

    def __init__(self, folder: Path, between: Callable[[], None]) -> None:
        self._folder, self._between = folder, between

    def whole(self, name: str, codec: Codec[FoundT]) -> list[FoundT] | None:
        """What a pass has found of all rows; None where it is not through. Called by all processes."""
        lines = list(_lines(self._folder / f"{name}.jsonl")) if rank() == 0 else []
        found = all_gather(lines)[0]
        return [codec.decode(value) for value in found[0]] if found else None

    def finish(self, name: str, found: Sequence[FoundT], codec: Codec[FoundT]) -> None:
        """Keep what a pass has found of all rows. Called by all processes."""
        with together():
            if rank() == 0:
                write_text(self._folder / f"{name}.jsonl", _line([codec.encode(one) for one in found]))

    def remember(self, name: str, codec: Codec[FoundT]) -> Remember[FoundT]:
        """Makes a computation keep what it finds of each micro-batch, and know what an earlier attempt has found.

        A micro-batch is left out where no process has to compute: under ZeRO-3 they gather weights together.
        """
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        known = {tuple(rows): found for file in sorted(folder.glob("*.jsonl")) for rows, found in _lines(file)}
        if known:
            logger.info("%s: %d micro-batches were computed by an earlier attempt", name, len(known))
        file = folder / f"{len(list(folder.glob(f'*-{rank()}.jsonl'))):04d}-{rank()}.jsonl"

        def remembering(compute: Compute[FoundT]) -> Compute[FoundT]:
            def computed(rows: np.ndarray) -> Sequence[FoundT]:
                self._between()
                key = tuple(rows.tolist())
                (missing,) = agreed(key not in known)
                if not missing:
                    return [codec.decode(value) for value in known[key]]
                found = compute(rows)
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(_line([key, [codec.encode(one) for one in found]]))
                return found

            return computed

        return remembering


def _line(content: Any) -> str:
    text = json.dumps(content)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _lines(file: Path) -> Iterator[Any]:
    """What the whole lines of a file hold."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        checksum, _, text = line.partition(" ")
        if checksum == f"{zlib.crc32(text.encode()):08x}":
            yield json.loads(text)
