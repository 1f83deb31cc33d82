"""Length distributions, in tokens; every draw is at least 1."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

from xllm.errors import ConfigError


class LengthDistribution(Protocol):
    """How long a prompt or an output is."""

    def draw(self, rng: random.Random) -> int:
        """One length in tokens, >= 1."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    num_tokens: int

    def draw(self, rng: random.Random) -> int:
        """The length."""
        return max(1, self.num_tokens)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length from ``low`` to ``high``, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"lengths from {self.low} to {self.high}: the range is empty")

    @classmethod
    def around(cls, num_tokens: int, ratio: float) -> Uniform:
        """``[n * (1 - ratio), n * (1 + ratio)]`` as vLLM's --random-range-ratio; 0 <= ratio < 1."""
        if not 0 <= ratio < 1:
            raise ConfigError(f"range ratio is {ratio}", hint="use 0 (fixed lengths) up to below 1")
        return cls(math.floor(num_tokens * (1 - ratio)), math.ceil(num_tokens * (1 + ratio)))

    def draw(self, rng: random.Random) -> int:
        """A uniform integer."""
        return max(1, rng.randint(self.low, self.high))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Half of the lengths are below ``median``; ``sigma`` is the standard deviation of the logarithm."""

    median: float
    sigma: float
    low: int = 1
    high: int = 2**31

    def __post_init__(self) -> None:
        if self.median <= 0 or self.sigma < 0 or self.low > self.high:
            raise ConfigError(f"impossible log-normal lengths: {self}")

    def draw(self, rng: random.Random) -> int:
        """Clamped to [low, high], so the tail piles up at ``high`` instead of being lost."""
        value = round(rng.lognormvariate(math.log(self.median), self.sigma))
        return max(1, self.low, min(self.high, value))


@dataclass(frozen=True, slots=True)
class Empirical:
    """Lengths seen in a trace, drawn with replacement."""

    seen: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seen:
            raise ConfigError("a length trace needs at least one length")

    def draw(self, rng: random.Random) -> int:
        """One of the seen lengths."""
        return max(1, rng.choice(self.seen))
