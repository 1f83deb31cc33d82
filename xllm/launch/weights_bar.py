"""A progress bar for weights on a terminal; silent elsewhere and for loads too quick to watch."""

from __future__ import annotations

import time
from typing import IO

from xllm.config.schema import format_bytes

WIDTH = 30
QUIET_S = 0.5
"""Nothing is drawn before."""


class WeightsBar:
    """``update`` (done, total) bytes as often as you like; the line is removed at the end."""

    def __init__(self, stream: IO[str], *, quiet_s: float = QUIET_S) -> None:
        self._quiet_s = quiet_s
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._began_s = time.monotonic()
        self._is_drawn = False

    def __enter__(self) -> WeightsBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Redraw."""
        if not self._is_terminal or time.monotonic() - self._began_s < self._quiet_s:
            return
        share = min(done_bytes / total_bytes, 1.0) if total_bytes else 1.0
        bar = "#" * int(share * WIDTH)
        text = f"weights [{bar:<{WIDTH}}] {format_bytes(done_bytes)} of {format_bytes(total_bytes)}"
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()
        self._is_drawn = True
