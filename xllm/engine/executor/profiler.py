"""Hole for a profiler of the executor."""

from __future__ import annotations

from typing import Protocol

from xllm.errors import Unsupported


class Profiler(Protocol):
    """Starts and stops a trace; both return at once."""

    def start(self) -> None:
        """Begin; raises InvalidRequest when one is running."""

    def stop(self) -> None:
        """End and write the trace into the engine's own directory."""


class NullProfiler:
    """No profiler is built for this executor."""

    def start(self) -> None:
        """Refuse: nothing accepted is ignored."""
        raise Unsupported("this engine has no profiler")

    def stop(self) -> None:
        """Refuse likewise."""
        raise Unsupported("this engine has no profiler")
