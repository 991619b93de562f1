"""Waiting for a condition that no stream announces: it holds within the deadline, or the test fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.01
_never = threading.Event()

T = TypeVar("T")


def eventually(condition: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s: {what}")
        _never.wait(_POLL_SECONDS)
