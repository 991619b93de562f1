"""Sees from the host whether a command runs in a sandbox: a `sleep` with a duration that nothing else uses.

The processes of a sandbox are visible from outside under /proc, and may be signalled from there.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from support.deadline import eventually


class Blocker:
    """A command that blocks until the test lets it go, wherever the server that started it went."""

    def __init__(self) -> None:
        # About a day: no test waits for it.
        self.duration = f"{random.randrange(80_000, 90_000)}.{random.randrange(10**9):09}"
        self.command = f"sleep {self.duration}"

    def processes(self) -> list[int]:
        wanted = [b"sleep", self.duration.encode()]
        found = []
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit():
                try:
                    arguments = (directory / "cmdline").read_bytes().split(b"\0")[:-1]
                except OSError:
                    continue  # It ended while we looked.
                if len(arguments) == 2 and [os.path.basename(arguments[0]), arguments[1]] == wanted:
                    found.append(int(directory.name))
        return found

    def until_running(self) -> int:
        (pid,) = eventually(self.processes, f"{self.command} runs in a sandbox")
        return pid

    def until_gone(self) -> None:
        eventually(lambda: not self.processes(), f"{self.command} is gone")

    def let_go(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGTERM)
