"""OutputHistory: lengths of finished outputs, and lengths sampled from them.

A ring of the last W lengths per class of requests (tenant and online/offline) and one over all; a class with too few
samples uses the one over all. At the start half of the ring is filled with a prior, so that the first guesses are
neither zero nor certain. All draws come from one seeded generator: the same history gives the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from xllm.engine.scheduler.sequence import Sequence
from xllm.errors import ConfigError

MIN_CLASS_SAMPLES = 16
MAX_CLASSES = 256


class LengthRing:
    """The last ``window`` lengths, also sorted (re-sorted at most once per change)."""

    __slots__ = ("_next", "_sorted", "_values", "count")

    def __init__(self, window: int) -> None:
        self._values = np.zeros(window)
        self._sorted: NDArray[np.float64] | None = None
        self._next = 0
        self.count = 0

    def push(self, length: int) -> None:
        """Add a length, forgetting the oldest one."""
        self._values[self._next] = length
        self._next = (self._next + 1) % len(self._values)
        self.count = min(self.count + 1, len(self._values))
        self._sorted = None

    def sorted_lengths(self) -> NDArray[np.float64]:
        """Ascending."""
        if self._sorted is None:
            self._sorted = np.sort(self._values[: self.count])
        return self._sorted


class OutputHistory:
    """See the module."""

    def __init__(self, *, window: int, prior_tokens: int, seed: int) -> None:
        if window < 1:
            raise ConfigError(f"the history window is {window}", hint="use at least 1 finished output")
        self._window = window
        self._all = LengthRing(window)
        for _ in range(max(1, window // 2)):
            self._all.push(prior_tokens)
        self._classes: dict[tuple[str, bool], LengthRing] = {}
        self._rng = np.random.default_rng(seed)

    def push(self, seq: Sequence) -> None:
        """A sequence ended by itself."""
        self._all.push(seq.num_output)
        key = (seq.request.tenant, seq.request.offline)
        ring = self._classes.get(key)
        if ring is None:
            if len(self._classes) >= MAX_CLASSES:  # tenants are the outside's choice: memory stays bounded
                self._classes.pop(next(iter(self._classes)))
            ring = self._classes[key] = LengthRing(self._window)
        ring.push(seq.num_output)

    def lengths_for(self, seq: Sequence) -> NDArray[np.float64]:
        """Sorted lengths of the sequence's class, or of all."""
        ring = self._classes.get((seq.request.tenant, seq.request.offline))
        chosen = ring if ring is not None and ring.count >= MIN_CLASS_SAMPLES else self._all
        return chosen.sorted_lengths()

    def sample_remaining(self, running: Seq[Sequence], num_draws: int) -> NDArray[np.float64]:
        """[num_draws, n]: remaining tokens of running sequences, drawn from P(L | L > produced).

        The values above d, with d in front and the request's maximum behind, are a piecewise-linear inverse CDF; the
        tail up to the maximum weighs as much as one sample: a deliberate pessimism that shrinks with the window.
        """
        out = np.zeros((num_draws, len(running)))
        uniform = self._rng.random((num_draws, len(running)))
        rings: dict[int, tuple[NDArray[np.float64], list[int]]] = {}
        for index, seq in enumerate(running):
            lengths = self.lengths_for(seq)
            rings.setdefault(id(lengths), (lengths, []))[1].append(index)
        for lengths, members in rings.values():
            produced = np.array([running[i].num_output for i in members], dtype=np.float64)
            limits = np.array([running[i].max_output_tokens for i in members], dtype=np.float64)
            out[:, members] = _inverse_cdf(lengths, produced, limits, uniform[:, members]) - produced
        remaining: NDArray[np.float64] = np.maximum(out, 0.0)
        return remaining

    def sample_fresh(self, seq: Sequence, num_draws: int) -> NDArray[np.float64]:
        """[num_draws]: output lengths of a candidate, plain draws from the history."""
        lengths = self.lengths_for(seq)
        drawn = lengths[self._rng.integers(0, len(lengths), num_draws)]
        remaining: NDArray[np.float64] = np.maximum(
            np.minimum(drawn, seq.max_output_tokens) - seq.num_output, 0.0
        )
        return remaining


def _inverse_cdf(
    lengths: NDArray[np.float64],
    produced: NDArray[np.float64],
    limits: NDArray[np.float64],
    uniform: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Per column the piecewise-linear inverse CDF over [produced, lengths above it (at most the limit), limit]."""
    first = np.searchsorted(lengths, produced, side="right")
    num_above = len(lengths) - first
    place = uniform * (num_above + 1)
    low = np.floor(place).astype(np.int64)

    def knot(index: NDArray[np.int64]) -> NDArray[np.float64]:
        inner = lengths[np.clip(first + index - 1, 0, len(lengths) - 1)]
        value = np.where(index == 0, produced, np.where(index > num_above, limits, np.minimum(inner, limits)))
        return value.astype(np.float64)

    below = knot(low)
    values: NDArray[np.float64] = below + (place - low) * (knot(low + 1) - below)
    return values
