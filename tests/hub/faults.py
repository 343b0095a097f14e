"""What goes wrong on purpose.

A fault is a dictionary: `path` (regular expression, searched in "METHOD /path"), `kind`, `times` (default: always),
`after` (requests to let through before), and for its kind:

    status      answer with `status` and `headers`
    refuse      close the connection without an answer
    drop        send `bytes` bytes of the body, then close the connection
    stall       send `bytes` bytes of the body, then wait `seconds` and go on
    slow        wait `seconds` before the answer
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any

Fault = dict[str, Any]


class Faults:
    """The faults that are still to happen."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults = [dict(fault) for fault in faults]
        self._lock = threading.Lock()

    def of(self, request: str) -> Fault:
        """The first fault that is to happen to a request, empty where there is none; its count goes down."""
        with self._lock:
            for fault in self._faults:
                if not re.search(fault["path"], request) or fault.get("times") == 0:
                    continue
                if fault.get("after", 0):
                    fault["after"] -= 1
                    continue
                if "times" in fault:
                    fault["times"] -= 1
                return dict(fault)
        return {}
