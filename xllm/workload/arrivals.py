"""Arrival processes: request times in seconds from the start, non-decreasing, the first one at 0."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from xllm.errors import ConfigError


class ArrivalProcess(Protocol):
    """When requests come. Pure: the same (num, seed) gives the same times."""

    def times_s(self, num: int, seed: int) -> list[float]:
        """``num`` times in seconds, ascending, starting at 0."""
        ...


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value!r}", hint="use a number above 0")


@dataclass(frozen=True, slots=True)
class AtOnce:
    """Every request at time 0 (request rate infinite)."""

    def times_s(self, num: int, seed: int) -> list[float]:
        """All zero."""
        return [0.0] * num


@dataclass(frozen=True, slots=True)
class Constant:
    """One request every ``1 / rate_per_s`` seconds."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _positive("request rate", self.rate_per_s)

    def times_s(self, num: int, seed: int) -> list[float]:
        """An even grid."""
        return [place / self.rate_per_s for place in range(num)]


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma-distributed gaps with mean ``1 / rate_per_s`` (the shape parameter is vLLM's `burstiness`).

    1 is a Poisson process; below 1 requests clump, above 1 they come more evenly. The variance of a gap is
    ``1 / (rate_per_s**2 * burstiness)``.
    """

    rate_per_s: float
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        _positive("request rate", self.rate_per_s)
        _positive("burstiness", self.burstiness)

    def times_s(self, num: int, seed: int) -> list[float]:
        """Cumulated gaps."""
        rng = random.Random(seed)
        scale = 1.0 / (self.rate_per_s * self.burstiness)
        times, now = [], 0.0
        for _ in range(num):
            times.append(now)
            now += rng.gammavariate(self.burstiness, scale)
        return times


@dataclass(frozen=True, slots=True)
class OnOff:
    """Poisson arrivals at two rates by turns: ``on_s`` seconds busy, ``off_s`` seconds quiet."""

    on_rate_per_s: float
    off_rate_per_s: float
    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        _positive("rate in the busy phase", self.on_rate_per_s)
        _positive("length of the busy phase", self.on_s)
        if min(self.off_rate_per_s, self.off_s) < 0:
            raise ConfigError("the quiet phase has a negative rate or length", hint="use 0 or more")

    def times_s(self, num: int, seed: int) -> list[float]:
        """Exact: a gap that would cross a switch is drawn again from the switch on (gaps have no memory)."""
        times = list(islice(self._arrivals(random.Random(seed)), num))
        start = times[0] if times else 0.0
        return [time - start for time in times]

    def _arrivals(self, rng: random.Random) -> Iterator[float]:
        now, is_on, phase_end = 0.0, True, self.on_s
        while True:
            rate = self.on_rate_per_s if is_on else self.off_rate_per_s
            after = now + rng.expovariate(rate) if rate > 0 else math.inf
            if after < phase_end:
                now = after
                yield now
            else:
                now, is_on = phase_end, not is_on
                phase_end += self.on_s if is_on else self.off_s


@dataclass(frozen=True, slots=True)
class Replay:
    """Recorded times, shifted so that the first is 0; a longer run repeats them."""

    recorded_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.recorded_s:
            raise ConfigError("a replay needs at least one recorded time")

    def times_s(self, num: int, seed: int) -> list[float]:
        """In recorded order; each repetition follows one mean gap after the last arrival."""
        ordered = sorted(self.recorded_s)
        span = ordered[-1] - ordered[0]
        period = span + (span / (len(ordered) - 1) if len(ordered) > 1 else 0.0)
        size = len(ordered)
        return [ordered[i % size] - ordered[0] + period * (i // size) for i in range(num)]


def build_arrivals(request_rate_per_s: float, burstiness: float = 1.0) -> ArrivalProcess:
    """The process `bench serve` asks for: an infinite rate means all at once."""
    return AtOnce() if math.isinf(request_rate_per_s) else Gamma(request_rate_per_s, burstiness)
