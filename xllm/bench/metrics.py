"""ServingMetrics: from records to the figures of the report.

Definitions are those of vLLM's serving benchmark, so that numbers compare: TTFT from send to first output,
TPOT = (latency - TTFT) / (output tokens - 1), ITL = gaps between chunks over all requests, E2EL = latency;
percentiles interpolate linearly; only successful requests count; throughputs divide by the duration of the
whole run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xllm.bench.load import RequestRecord
from xllm.errors import ConfigError

METRIC_NAMES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds."""

    mean_ms: float
    median_ms: float
    std_ms: float
    percentiles_ms: tuple[tuple[float, float], ...]
    """(percentile, value)"""


@dataclass(frozen=True, slots=True)
class ServingMetrics:
    """The figures of one run."""

    duration_s: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    total_cached_tokens: int | None
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    distributions: Mapping[str, Distribution]


def compute_metrics(
    records: Sequence[RequestRecord],
    duration_s: float,
    *,
    percentiles: Sequence[float] = (99.0,),
    goodput_ms: Mapping[str, float] | None = None,
) -> ServingMetrics:
    """``goodput_ms`` maps ttft, tpot, e2el to the limit a good request keeps."""
    good = [record for record in records if record.is_success]
    num_output = sum(record.num_output_tokens for record in good)
    num_input = sum(record.num_prompt_tokens for record in good)
    cached = [record.num_cached_tokens for record in good if record.num_cached_tokens is not None]
    per_s = 1.0 / duration_s if duration_s > 0 else 0.0
    goodput = None
    if goodput_ms:
        goodput = per_s * sum(_is_good(record, goodput_ms) for record in good)
    return ServingMetrics(
        duration_s=duration_s,
        completed=len(good),
        failed=len(records) - len(good),
        total_input_tokens=num_input,
        total_output_tokens=num_output,
        total_cached_tokens=sum(cached) if cached else None,
        request_throughput=len(good) * per_s,
        request_goodput=goodput,
        output_throughput=num_output * per_s,
        total_token_throughput=(num_input + num_output) * per_s,
        max_output_tokens_per_s=_peak_tokens_per_s(good),
        max_concurrent_requests=_peak_concurrency(good),
        distributions={
            "ttft": _distribution((r.ttft_s for r in good), percentiles),
            "tpot": _distribution((r.tpot_s for r in good if r.tpot_s is not None), percentiles),
            "itl": _distribution((gap for r in good for gap in r.itl_s), percentiles),
            "e2el": _distribution((r.latency_s for r in good), percentiles),
        },
    )


def _is_good(record: RequestRecord, limits_ms: Mapping[str, float]) -> bool:
    """An answer of one token has no TPOT and keeps any TPOT limit."""
    values_s = {"ttft": record.ttft_s, "tpot": record.tpot_s or 0.0, "e2el": record.latency_s}
    return all(values_s[name] * 1000 <= limit for name, limit in limits_ms.items())


def _distribution(values_s: Iterable[float], percentiles: Sequence[float]) -> Distribution:
    values = np.asarray(list(values_s) or [0.0]) * 1000
    return Distribution(
        mean_ms=float(values.mean()),
        median_ms=float(np.median(values)),
        std_ms=float(values.std()),
        percentiles_ms=tuple((p, float(np.percentile(values, p))) for p in percentiles),
    )


def _peak_tokens_per_s(records: Sequence[RequestRecord]) -> float:
    """Most output tokens in one whole second of the run; a request's tokens are spread over its chunks."""
    if not records:
        return 0.0
    start_s = min(record.started_s for record in records)
    per_second: defaultdict[int, float] = defaultdict(float)
    for record in records:
        weight = record.num_output_tokens / (1 + len(record.itl_s))
        at_s = record.started_s + record.ttft_s
        for gap_s in (0.0, *record.itl_s):
            at_s += gap_s
            per_second[int(at_s - start_s)] += weight
    return max(per_second.values())


def _peak_concurrency(records: Sequence[RequestRecord]) -> int:
    """Most requests in flight at any moment."""
    edges = [(r.started_s, 1) for r in records] + [(r.started_s + r.latency_s, -1) for r in records]
    running = peak = 0
    for _, change in sorted(edges):
        running += change
        peak = max(peak, running)
    return peak


def parse_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """``["ttft:200", "tpot:50"]`` -> limits in milliseconds."""
    limits: dict[str, float] = {}
    for pair in pairs:
        name, colon, text = pair.partition(":")
        try:
            limit = float(text) if colon else math.nan
        except ValueError:
            limit = math.nan
        if name not in ("ttft", "tpot", "e2el") or not limit >= 0:
            raise ConfigError(
                f"--goodput {pair!r}", hint="use ttft:MS, tpot:MS or e2el:MS, e.g. ttft:200 tpot:50"
            )
        limits[name] = limit
    return limits
