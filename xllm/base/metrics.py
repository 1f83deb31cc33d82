"""The declared table of Prometheus metrics, and one registry object over it that is passed around.

Only the edge process has one: engines report their totals over RPC and the edge renders once, so no metric
is ever merged from files of several processes. Names are ``xllm:...``; a row that means the same as one of
vLLM's carries that name, and ``render(compat="vllm")`` adds it a second time under ``vllm:...``.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "xllm:"

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
_LONG_SECONDS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
_TOKEN_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """One metric as declared."""

    name: str
    """Without the prefix; a counter's ``_total`` is added on the wire."""
    kind: Literal["counter", "gauge", "histogram"]
    """Type."""
    help: str
    """One sentence."""
    labels: tuple[str, ...] = ()
    """Labels beside those common to all rows (model_name, engine)."""
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""
    is_vllm: bool = False
    """True when vLLM has a metric of this name and meaning."""


def _counter(name: str, help_text: str, *labels: str, is_vllm: bool = False) -> MetricRow:
    return MetricRow(name=name, kind="counter", help=help_text, labels=labels, is_vllm=is_vllm)


def _gauge(name: str, help_text: str, *labels: str, is_vllm: bool = False) -> MetricRow:
    return MetricRow(name=name, kind="gauge", help=help_text, labels=labels, is_vllm=is_vllm)


def _histogram(name: str, help_text: str, buckets: tuple[float, ...], *, is_vllm: bool = True) -> MetricRow:
    return MetricRow(name=name, kind="histogram", help=help_text, buckets=buckets, is_vllm=is_vllm)


METRICS: tuple[MetricRow, ...] = (
    _counter("prompt_tokens", "Prompt tokens of admitted requests.", is_vllm=True),
    _counter("generation_tokens", "Tokens generated.", is_vllm=True),
    _counter("request_success", "Requests ended, by finish reason.", "finished_reason", is_vllm=True),
    _counter("num_preemptions", "Sequences preempted for want of KV blocks.", is_vllm=True),
    _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", is_vllm=True),
    _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", is_vllm=True),
    _counter("engine_steps", "Steps that the engine completed."),
    _counter("wasted_tokens", "Computed for sequences that had ended: the price of planning ahead."),
    _counter("early_rejections", "Requests refused: predicted first token later than their budget."),
    _counter("http_requests", "HTTP responses, by method, route and status.", "method", "handler", "status"),
    _counter("requests_refused", "Requests answered 429 or 503 without being started.", "reason"),
    _counter("client_disconnects", "Requests aborted because their client went away."),
    _counter("route_decisions", "Requests and further attempts sent to an instance, by reason.", "reason"),
    _counter("attempts_lost", "Attempts whose instance was lost, by how.", "how"),
    _counter("attempts_retried", "Attempts after the first: after a loss or a refusal for want of room."),
    _counter("attempts_migrated", "Running requests that went on at another instance, since theirs drains."),
    _counter("requests_held", "Requests that had to wait in the service."),
    _counter("predicted_cached_tokens", "Prompt tokens that routing expected in a cache."),
    _counter("actual_cached_tokens", "Of the same requests, prompt tokens that were found there."),
    _counter("mispredicted_cached_tokens", "Sum of the differences between both, request by request."),
    _counter("cache_prediction_alarms", "Times the log said that both parted."),
    _counter("kv_index_gaps", "KV event feeds that had to begin anew."),
    _gauge("kv_index_blocks", "Blocks in the index of cached prefixes."),
    _gauge("num_requests_held", "Requests that wait in the service for room, by class.", "priority_class"),
    _gauge("num_requests_parked", "Requests whose instance was lost and that wait for another one."),
    _gauge("instance_state", "1 for the state that an instance is in.", "instance_id", "state"),
    _gauge("num_requests_running", "Sequences in the running set.", is_vllm=True),
    _gauge("num_requests_waiting", "Requests waiting to be admitted.", is_vllm=True),
    _gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", is_vllm=True),
    _gauge("num_kv_blocks", "KV blocks, by state.", "state"),
    _gauge("step_time_error", "Median |relative error| of recently predicted step times, worst engine."),
    _gauge("engine_healthy", "1 while the engine answers and makes progress.", is_vllm=True),
    _histogram("time_to_first_token_seconds", "Arrival to first token.", _SECONDS),
    _histogram("inter_token_latency_seconds", "Between two tokens of a stream.", _TOKEN_SECONDS),
    _histogram(
        "request_time_per_output_token_seconds", "Mean per request, first token aside.", _TOKEN_SECONDS
    ),
    _histogram("e2e_request_latency_seconds", "Arrival to end.", _LONG_SECONDS),
    _histogram("request_queue_time_seconds", "Arrival to admission.", _LONG_SECONDS),
    _histogram("request_prefill_time_seconds", "Admission to first token.", _LONG_SECONDS),
    _histogram("request_decode_time_seconds", "First token to last.", _LONG_SECONDS),
    _histogram("request_inference_time_seconds", "Admission to last token.", _LONG_SECONDS),
    _histogram("request_prompt_tokens", "Prompt length.", _TOKENS),
    _histogram("request_generation_tokens", "Output length.", _TOKENS),
    _histogram("request_params_n", "Choices asked for.", (1, 2, 5, 10, 20)),
    _histogram("request_params_max_tokens", "Output limit asked for.", _TOKENS),
)


class _Buckets:
    """One series of a histogram."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class _Histogram:
    """A histogram that one thread fills: a token costs two, and the library's takes two locks for each."""

    def __init__(self, name: str, row: MetricRow, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._row = row
        self._labels = labels
        self._series: dict[tuple[str, ...], _Buckets] = {}
        registry.register(self)

    def labels(self, *values: str) -> _Buckets:
        """The series with these values."""
        return self._series.setdefault(values, _Buckets(self._row.buckets))

    def remove(self, *values: str) -> None:
        """Drop a series."""
        del self._series[values]

    def collect(self) -> Iterable[Metric]:
        """For the registry: counts become cumulative here."""
        family = HistogramMetricFamily(self._name, self._row.help, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._row.buckets, math.inf)]  # type: ignore[no-untyped-call]
        for values, series in self._series.items():
            buckets = list(zip(bounds, itertools.accumulate(series.counts), strict=True))
            family.add_metric(values, buckets, series.total)
        yield family


class Metrics:
    """The metrics of one process; children are kept, so a hot path pays one dict look-up and one add.

    ``common`` labels (model_name, engine) stand on every series. Every series without own labels exists
    from the start with value 0, so that a dashboard can tell "none yet" from "not measured".
    """

    def __init__(self, common: Mapping[str, str], rows: Iterable[MetricRow] = METRICS) -> None:
        self.rows = {row.name: row for row in rows}
        self._common = dict(common)
        self._registry = CollectorRegistry(auto_describe=False)
        self._metrics = {row.name: self._declare(row) for row in self.rows.values()}
        self._children: dict[tuple[str, tuple[str, ...]], Counter | Gauge | _Buckets] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        for row in self.rows.values():
            if not row.labels:
                self._child(row.name, ())

    def inc(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Add to a counter; ``labels`` in the order of the row."""
        cast(Counter, self._child(name, labels)).inc(amount)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        cast(Gauge, self._child(name, labels)).set(value)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add one observation to a histogram."""
        cast(_Buckets, self._child(name, labels)).observe(value)

    def report_total(self, name: str, total: float, *labels: str) -> None:
        """Bring a counter up to another process's running total; a smaller total means that process
        restarted."""
        key = (name, labels)
        before = self._totals.get(key, 0.0)
        self._totals[key] = total
        self.inc(name, total - before if total >= before else total, *labels)

    def keep_only(self, name: str, labels: Collection[tuple[str, ...]]) -> None:
        """Drop the series of a metric whose own labels are not among ``labels``: what they speak of is gone."""
        for key in [key for key in self._children if key[0] == name and key[1] not in labels]:
            del self._children[key]
            self._metrics[name].remove(*self._common.values(), *key[1])

    def render(self, compat: str = "none") -> bytes:
        """The text exposition; ``compat="vllm"`` adds the parallel metrics under vLLM's names."""
        families = {PREFIX + row.name: PREFIX for row in self.rows.values()}
        text = generate_latest(_View(self._registry, families))
        if compat == "vllm":
            parallel = {PREFIX + row.name: "vllm:" for row in self.rows.values() if row.is_vllm}
            text += generate_latest(_View(self._registry, parallel))
        return text

    def _declare(self, row: MetricRow) -> Counter | Gauge | _Histogram:
        labels = (*self._common, *row.labels)
        name = PREFIX + row.name
        if row.kind == "counter":
            return Counter(name, row.help, labels, registry=self._registry)
        if row.kind == "gauge":
            return Gauge(name, row.help, labels, registry=self._registry)
        return _Histogram(name, row, labels, self._registry)

    def _child(self, name: str, labels: tuple[str, ...]) -> Counter | Gauge | _Buckets:
        child = self._children.get((name, labels))
        if child is None:
            child = self._metrics[name].labels(*self._common.values(), *labels)
            self._children[(name, labels)] = child
        return child


class _View(CollectorRegistry):
    """Some families of another registry, under another prefix, without the ``_created`` series nobody
    reads."""

    def __init__(self, registry: CollectorRegistry, prefixes: Mapping[str, str]) -> None:
        super().__init__(auto_describe=False)
        self._source = registry
        self._prefixes = prefixes

    def collect(self) -> Iterable[Metric]:
        """Copy each listed family."""
        for family in self._source.collect():
            prefix = self._prefixes.get(family.name)
            if prefix is None:
                continue
            copy = Metric(prefix + family.name.removeprefix(PREFIX), family.documentation, family.type)
            copy.samples = [
                sample._replace(name=prefix + sample.name.removeprefix(PREFIX))
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
            yield copy


def render_page() -> str:
    """The reference page as Markdown: ``python -m xllm.base.metrics > docs/reference/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python -m xllm.base.metrics`; a test compares this page with the code.",
        "",
        "`/metrics` serves these in Prometheus' text form, each with the labels `model_name` and `engine`.",
        "Counters gain `_total`, histograms `_bucket`, `_sum` and `_count`. With `--metrics-compat vllm` those",
        "marked are served under `vllm:` in place of `xllm:` too, so that dashboards made for vLLM work.",
        "",
        "| name | type | labels | vLLM | meaning |",
        "|---|---|---|---|---|",
    ]
    for row in METRICS:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        lines.append(
            f"| `{PREFIX}{row.name}` | {row.kind} | {labels} | {'yes' if row.is_vllm else ''} | {row.help} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render_page(), end="")
