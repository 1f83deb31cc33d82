"""What the edge measures about calls, all from one process's monotonic clock, and how /metrics is rendered.

Engine totals come with load reports; the edge adds latencies as a client would see them. Nothing is guessed: a series
that nobody can measure is not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from xllm.api.backend import Backend, Sample
from xllm.api.choice_text import Delta
from xllm.base.clock import Clock
from xllm.base.log import REQUEST_LOGGER, get_logger
from xllm.base.metrics import Metrics
from xllm.types.output import Usage
from xllm.types.request import Request

request_log = get_logger(REQUEST_LOGGER)


class CallObserver(Protocol):
    """Is told what happens to one call; must be quick and never raise."""

    def saw_deltas(self, deltas: Sequence[Delta]) -> None:
        """One step's news."""

    def saw_usage(self, usage: Usage) -> None:
        """A choice ended in the engine."""

    def ended(self, cause: BaseException | None) -> None:
        """The call is over: None = finished, ClientGone = the client left, else the error."""


class NullObserver:
    """Measures nothing."""

    def saw_deltas(self, deltas: Sequence[Delta]) -> None:
        """Do nothing."""

    def saw_usage(self, usage: Usage) -> None:
        """Do nothing."""

    def ended(self, cause: BaseException | None) -> None:
        """Do nothing."""


class EdgeMetrics:
    """The edge's part of the metrics; one per process."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self.metrics = metrics
        self.clock = clock
        self.num_calls = 0
        """Calls in progress."""

    def begin_call(self, requests: Sequence[Request], arrived_s: float) -> CallObserver:
        """Observer of a call whose body arrived at ``arrived_s``."""
        for request in requests:
            request_log.info(
                "%s arrived: %d prompt tokens, n=%d, max_tokens=%s",
                request.id,
                request.num_prompt_tokens,
                request.sampling.n,
                request.sampling.max_tokens,
            )
            self.metrics.observe("request_prompt_tokens", request.num_prompt_tokens)
            self.metrics.observe("request_params_n", request.sampling.n)
            self.metrics.observe("request_params_max_tokens", request.sampling.max_tokens or 0)
        return _Call(self, tuple(request.id for request in requests), arrived_s)

    def saw_response(self, method: str, route: str, status: int) -> None:
        """One HTTP response."""
        self.metrics.inc("http_requests", 1.0, method, route, str(status))
        if status in (429, 503) and route.startswith("/v1/"):
            self.metrics.inc("requests_refused", 1.0, "queue_full" if status == 429 else "unavailable")

    def render(self, backend: Backend, compat: str) -> bytes:
        """The exposition, with the engines' last reports brought in."""
        metrics = self.metrics
        loads = backend.loads()
        metrics.set("num_requests_running", sum(item.load.num_running for item in loads))
        metrics.set("num_requests_waiting", sum(item.load.num_waiting for item in loads))
        metrics.set("engine_healthy", float(bool(loads) and all(item.is_healthy for item in loads)))
        metrics.set("step_time_error", max((item.load.step_time_error for item in loads), default=0.0))
        total = sum(item.load.blocks_total for item in loads)
        states = ("free", "used", "cached", "leased", "pinned")
        counts = {state: sum(getattr(item.load, f"blocks_{state}") for item in loads) for state in states}
        for state, count in counts.items():
            metrics.set("num_kv_blocks", count, state)
        busy = counts["used"] + counts["leased"] + counts["pinned"]
        metrics.set("kv_cache_usage_perc", busy / total if total else 0.0)
        for name, attribute in _TOTALS:
            metrics.report_total(name, sum(getattr(item.load, attribute) for item in loads))
        self._bring_in(backend.samples())
        return metrics.render(compat)

    def _bring_in(self, samples: Sequence[Sample]) -> None:
        gauges: dict[str, set[tuple[str, ...]]] = {}
        for name, value, labels in samples:
            if self.metrics.rows[name].kind == "counter":
                self.metrics.report_total(name, value, *labels)
            else:
                self.metrics.set(name, value, *labels)
                gauges.setdefault(name, set()).add(labels)
        for name, labels_there in gauges.items():
            self.metrics.keep_only(name, labels_there)


_TOTALS = (
    ("prompt_tokens", "num_prompt_tokens"),
    ("generation_tokens", "num_output_tokens"),
    ("num_preemptions", "num_preemptions"),
    ("prefix_cache_queries", "prefix_query_tokens"),
    ("prefix_cache_hits", "prefix_hit_tokens"),
    ("engine_steps", "step"),
    ("wasted_tokens", "num_wasted_tokens"),
    ("early_rejections", "num_early_rejections"),
)


class _Call:
    """Latencies of one call; times of a choice's tokens are those of the deltas that carried them."""

    __slots__ = ("_arrived_s", "_edge", "_ids", "_last_s", "_num_tokens", "_started_s")

    def __init__(self, edge: EdgeMetrics, ids: tuple[str, ...], arrived_s: float) -> None:
        self._edge = edge
        self._ids = ids
        self._arrived_s = arrived_s
        self._last_s: dict[int, float] = {}
        self._num_tokens = 0
        self._started_s = arrived_s
        edge.num_calls += 1

    def saw_deltas(self, deltas: Sequence[Delta]) -> None:
        """Time to first token, then one gap per token: k tokens in one step share the gap."""
        now_s = self._edge.clock.now()
        observe = self._edge.metrics.observe
        last_s = self._last_s
        for delta in deltas:
            count = len(delta.token_ids)
            if count:
                before = last_s.get(delta.index)
                if before is None:
                    if not last_s:
                        observe("time_to_first_token_seconds", now_s - self._arrived_s)
                        self._started_s = now_s
                else:
                    for _ in range(count):
                        observe("inter_token_latency_seconds", (now_s - before) / count)
                last_s[delta.index] = now_s
            if delta.finish_reason is not None:
                self._num_tokens = max(self._num_tokens, delta.num_tokens)
                self._edge.metrics.inc("request_success", 1.0, delta.finish_reason)
                observe("request_generation_tokens", delta.num_tokens)

    def saw_usage(self, usage: Usage) -> None:
        """Part times as the engine measured them."""
        observe = self._edge.metrics.observe
        observe("request_queue_time_seconds", usage.queue_s)
        observe("request_prefill_time_seconds", usage.prefill_s)
        observe("request_decode_time_seconds", usage.decode_s)
        observe("request_inference_time_seconds", usage.prefill_s + usage.decode_s)

    def ended(self, cause: BaseException | None) -> None:
        """Whole latencies of calls that were finished; reasons of the others."""
        edge = self._edge
        edge.num_calls -= 1
        now_s = edge.clock.now()
        for request_id in self._ids:
            how = "finished" if cause is None else f"ended by {type(cause).__name__}"
            request_log.info("%s %s after %.3f s", request_id, how, now_s - self._arrived_s)
        if cause is None:
            edge.metrics.observe("e2e_request_latency_seconds", now_s - self._arrived_s)
            if self._num_tokens > 1:
                mean_s = (now_s - self._started_s) / (self._num_tokens - 1)
                edge.metrics.observe("request_time_per_output_token_seconds", mean_s)
        elif type(cause).__name__ in ("ClientGone", "CancelledError"):
            edge.metrics.inc("request_success", 1.0, "abort")
            edge.metrics.inc("client_disconnects")
        else:
            edge.metrics.inc("request_success", 1.0, "error")
