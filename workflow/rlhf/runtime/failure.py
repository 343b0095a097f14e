"""What an exception means for the person who has to mend it: a cause and a remedy in place of a traceback."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass

from rlhf.errors import PeerFailed, UserError, has_errno
from rlhf.records.attempts import DEVICE_MEMORY

OUT_OF_MEMORY = (DEVICE_MEMORY, "out_of_host_memory")


@dataclass(frozen=True)
class Failure:
    """Why a process failed.

    Attributes:
        cause: one of the names in `docs/when-things-go-wrong.md`.
        message: what happened, in one line.
        remedy: what to do; empty where the message says it.
    """

    cause: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


def explain(error: BaseException) -> Failure:
    """The cause of an exception, found by its type and text."""
    if isinstance(error, UserError):
        return Failure("user_error", str(error))
    if isinstance(error, PeerFailed):  # its text may name any cause, which is the other process's to report
        return Failure("lost_process", str(error))
    for cause, applies, remedy in _RULES:
        if applies(error):
            return Failure(cause, _line(error), remedy)
    return Failure("unexpected", _line(error), "the traceback above tells where")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:600]}"


def _is_device_memory(error: BaseException) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(error)


def _is_host_memory(error: BaseException) -> bool:
    text = "can't allocate memory|not enough memory|Cannot allocate memory"
    return isinstance(error, MemoryError) or re.search(text, str(error)) is not None or has_errno(error, errno.ENOMEM)


def _is_disk_full(error: BaseException) -> bool:
    # PyTorch's writer reports a full disk in words of its own.
    text = "No space left|unexpected pos|PytorchStreamWriter failed|Disk quota exceeded"
    return has_errno(error, errno.ENOSPC, errno.EDQUOT) or re.search(text, str(error)) is not None


def _is_lost_peer(error: BaseException) -> bool:
    text = "gloo|NCCL|Connection (reset|closed) by peer|Connection was likely closed|"
    text += "collective|process group|Timed out waiting|Broken pipe"
    return isinstance(error, RuntimeError) and re.search(text, str(error), re.IGNORECASE) is not None


_RULES: tuple[tuple[str, Callable[[BaseException], bool], str], ...] = (
    (
        DEVICE_MEMORY,
        _is_device_memory,
        "lower the per-device batch sizes, or set gradient checkpointing, a higher ZeRO stage or offload in the "
        "stage's `execution`; none of them changes the result",
    ),
    ("disk_full", _is_disk_full, "free space, and run the same command again: it goes on from the last checkpoint"),
    ("out_of_host_memory", _is_host_memory, "raise `mem_mb` in the stage's `execution`, or start fewer jobs at a time"),
    (
        "not_finite",
        lambda error: isinstance(error, FloatingPointError),
        "try a smaller learning rate, or bf16 or fp32 in place of fp16",
    ),
    ("missing_file", lambda error: isinstance(error, FileNotFoundError), "run snakemake, which makes what is missing"),
    (
        "lost_process",
        _is_lost_peer,
        "another process of this stage ended or hung; its own message, if there is one, tells why",
    ),
)
