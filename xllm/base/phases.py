"""Phases: what a start consists of, measured where it happens, on one clock for all processes of the machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OnPhase = Callable[[str, float], object]
"""Called with (name, seconds) when a phase has just ended."""

SPANS_MARK = "start-up, seconds: "
"""What a log line of :func:`format_spans` begins with."""
_SPAN = re.compile(r"(\w+)/([\w ]+?) ([\d.]+)\+([\d.]+)")


@dataclass(frozen=True, slots=True)
class Span:
    """One phase of one process; ``begin_s`` on the monotonic clock, or after the first process's start."""

    process: str
    phase: str
    begin_s: float
    seconds: float


class Phases:
    """The phases of this process so far."""

    def __init__(self, process: str) -> None:
        self._process = process
        self.spans: list[Span] = []

    def add(self, phase: str, seconds: float) -> None:
        """A phase that ends now."""
        self.spans.append(Span(self._process, phase, time.monotonic() - seconds, seconds))

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """The block is a phase, unless it raises."""
        with measured(phase, self.add):
            yield


@contextmanager
def measured(phase: str, on_phase: OnPhase) -> Iterator[None]:
    """Report how long the block took, unless it raises."""
    began_s = time.monotonic()
    yield
    on_phase(phase, time.monotonic() - began_s)


EXEC_AT = "XLLM_EXEC_AT"
"""Set by a script that installed before it became this process: when it did, in seconds since 1970."""


def process_age_s(proc: Path = Path("/proc")) -> float:
    """Seconds since this process was started, the interpreter's own start included; 0 where the system does not say.

    Exact to a clock tick, usually 10 ms. What a script did before its ``exec`` does not count if it says so, once.
    """
    try:
        if said := os.environ.pop(EXEC_AT, ""):
            return max(0.0, time.time() - float(said))
        fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def format_spans(spans: Iterable[Span]) -> str:
    """One line: ``process/phase begin+seconds``, from the first begin on."""
    ordered = sorted(spans, key=lambda span: span.begin_s)
    zero_s = ordered[0].begin_s if ordered else 0.0
    return ", ".join(f"{s.process}/{s.phase} {s.begin_s - zero_s:.3f}+{s.seconds:.3f}" for s in ordered)


def parse_spans(text: str) -> list[Span]:
    """What :func:`format_spans` wrote, found within ``text``."""
    return [
        Span(process, phase, float(begin), float(seconds))
        for process, phase, begin, seconds in _SPAN.findall(text)
    ]
