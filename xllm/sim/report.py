"""Report: what every request experienced, and what the engine did."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from xllm.types.output import RequestOutput


@dataclass(slots=True)
class RequestRecord:
    """One request; times in seconds of simulated time."""

    arrival_s: float
    prompt_tokens: int
    first_token_s: float | None = None
    last_token_s: float | None = None
    max_gap_s: float = 0.0
    output_tokens: int = 0
    num_preemptions: int = 0
    finish_reason: str | None = None
    refusal: str | None = None

    def add(self, output: RequestOutput, now_s: float) -> None:
        """Take an output that arrives now."""
        if output.token_ids:
            if self.last_token_s is not None:
                self.max_gap_s = max(self.max_gap_s, now_s - self.last_token_s)
            elif self.first_token_s is None:
                self.first_token_s = now_s
            self.last_token_s = now_s
            self.output_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            if output.usage is not None:
                self.num_preemptions = output.usage.num_preemptions

    @property
    def ttft_s(self) -> float:
        """Arrival to first token; infinite when there was none."""
        return math.inf if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens < 2:
            return 0.0
        return (self.last_token_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def is_complete(self) -> bool:
        """Whether it ended by itself."""
        return self.finish_reason in ("stop", "length")


@dataclass(slots=True)
class Report:
    """A whole run."""

    records: dict[str, RequestRecord] = field(default_factory=dict)
    num_steps: int = 0
    busy_s: float = 0.0
    duration_s: float = 0.0
    utilisation_sum: float = 0.0
    num_preemptions: int = 0

    @property
    def utilisation(self) -> float:
        """Mean share of KV blocks used, over steps."""
        return self.utilisation_sum / max(1, self.num_steps)

    @property
    def eviction_share(self) -> float:
        """Preemptions per request."""
        return self.num_preemptions / max(1, len(self.records))

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens of completed requests per second."""
        done = sum(r.output_tokens for r in self.records.values() if r.is_complete)
        return done / self.duration_s if self.duration_s else 0.0

    def share(self, is_good: Callable[[RequestRecord], bool]) -> float:
        """Share of offered requests that completed and satisfy ``is_good``."""
        good = sum(1 for r in self.records.values() if r.is_complete and is_good(r))
        return good / max(1, len(self.records))

    def goodput_per_s(self, is_good: Callable[[RequestRecord], bool]) -> float:
        """Good requests per second."""
        return self.share(is_good) * len(self.records) / self.duration_s if self.duration_s else 0.0


def percentile(values: Iterable[float], p: float) -> float:
    """The p-th percentile (0..100) by nearest rank; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, math.ceil(p / 100 * len(ordered)) - 1 if p > 0 else 0)]


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    ordered = list(values)
    return statistics.median(ordered) if ordered else math.nan
