"""Which shapes have a graph: sizes that steps are padded to, and the choice between full, piecewise and eager.

    1 2 4 8 | then multiples of 8 up to 64 | then multiples of 16, up to the limit

Small batches are padded by little in number, large ones by little in share; the number of graphs stays a few dozen
(report 3.4; the paper leaves the sizes open).
"""

from __future__ import annotations

import bisect
import enum
from dataclasses import dataclass

from xllm.errors import ConfigError

SMALL_SIZES = (1, 2, 4, 8)
FINE_STEP, FINE_UNTIL, COARSE_STEP = 8, 64, 16


class LaunchMode(enum.Enum):
    """How the forward of a step is launched."""

    EAGER = "eager"
    """Operation by operation."""
    FULL = "full"
    """One graph, attention included: pure decode."""
    PIECEWISE = "piecewise"
    """Graphs between attentions, which run by themselves: steps with prompts."""


@dataclass(frozen=True, slots=True)
class GraphKey:
    """A graph: its mode and the number of tokens it runs."""

    mode: LaunchMode
    num_tokens: int


class Buckets:
    """Sizes up to a limit; the limit itself is always the last one."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigError(f"graphs for up to {limit} tokens", hint="use at least 1, or --enforce-eager")
        sizes = {size for size in SMALL_SIZES if size < limit}
        sizes.update(range(2 * FINE_STEP, min(FINE_UNTIL, limit), FINE_STEP))
        sizes.update(range(FINE_UNTIL, limit, COARSE_STEP))
        self.sizes: tuple[int, ...] = (*sorted(sizes), limit)

    def try_pad(self, num_tokens: int) -> int | None:
        """The smallest size that holds ``num_tokens``; None beyond the limit."""
        index = bisect.bisect_left(self.sizes, num_tokens)
        return self.sizes[index] if index < len(self.sizes) else None


class GraphChoice:
    """Chooses per step; either kind of graph may be off (None)."""

    def __init__(self, *, full: Buckets | None, piecewise: Buckets | None) -> None:
        self._full = full
        self._piecewise = piecewise

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest graph."""
        return max(b.sizes[-1] for b in (self._full, self._piecewise) if b is not None)

    def choose(self, num_rows: int, num_tokens: int) -> GraphKey | None:
        """The graph of a step; None: run it eagerly."""
        is_decode = num_tokens == num_rows
        if is_decode and self._full is not None:
            size = self._full.try_pad(num_tokens)
            if size is not None:
                return GraphKey(LaunchMode.FULL, size)
        if self._piecewise is not None:
            size = self._piecewise.try_pad(num_tokens)
            if size is not None:
                return GraphKey(LaunchMode.PIECEWISE, size)
        return None
