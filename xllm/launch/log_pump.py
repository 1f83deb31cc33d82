"""Copies a child's output line by line and remembers the last lines for error messages."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import IO

MAX_LINE_CHARS = 64 * 1024


def write_to_stderr(line: str) -> None:
    """The default sink: the child's lines already carry time, level and process."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class LogPump:
    """A daemon thread from a pipe to a sink; ends with the pipe. A sink that raises loses its line only."""

    def __init__(self, pipe: IO[str], sink: Callable[[str], None], *, num_tail_lines: int = 30) -> None:
        self._pipe = pipe
        self._sink = sink
        self._tail: deque[str] = deque(maxlen=num_tail_lines)
        self._thread = threading.Thread(target=self._copy, name="xllm-log-pump", daemon=True)
        self._thread.start()

    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self._tail)

    def join(self, timeout_s: float) -> None:
        """Wait until the pipe is at its end."""
        self._thread.join(timeout_s)

    def _copy(self) -> None:
        with self._pipe:
            while line := self._pipe.readline(MAX_LINE_CHARS):
                text = line.rstrip("\n")
                self._tail.append(text)
                try:
                    self._sink(text)
                except (OSError, ValueError):
                    continue  # our own output is closed: keep reading, or the child would block
