"""PrefixFeeds: the KV index of a service, and how well its predictions hold.

A decision that rests on cached prefixes predicts how many prompt tokens the instance finds in its cache; the first
output of the request says how many it did find. The sums are metrics; when they part, the log says so once a minute.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from xllm.service.kv_index import KvIndex
from xllm.types.ids import InstanceId, RequestId
from xllm.types.output import RequestOutput
from xllm.types.request import Request

log = logging.getLogger(__name__)

ALARM_REQUESTS = 50
ALARM_SHARE = 0.25
"""Alarm when, over this many requests, predictions were wrong by more than this share of the prompt tokens."""
_ALARM_TICKS = 120


class PrefixFeeds:
    """See the module."""

    def __init__(self) -> None:
        self.index = KvIndex()
        self.predicted_tokens: Counter[InstanceId] = Counter()
        self.actual_tokens: Counter[InstanceId] = Counter()
        self.num_alarms = 0
        self._open: dict[tuple[RequestId, int], tuple[InstanceId, float, int]] = {}
        self._wrong_tokens = 0.0
        self._prompt_tokens = 0
        self._num_compared = 0
        self._quiet_ticks = 0

    @property
    def has_predictions(self) -> bool:
        """Whether some request's first output is awaited."""
        return bool(self._open)

    def on_routed(self, request: Request, instance: InstanceId, hit_tokens: float | None) -> None:
        """A request was sent to ``instance``; ``hit_tokens`` None: the policy predicted nothing."""
        if hit_tokens is None:
            return
        self.index.expect(instance, request.block_hashes)
        if not request.resumed_output_ids:
            if len(self._open) > 100_000:  # requests that never had an output
                self._open.clear()
            self._open[request.id, request.attempt] = (instance, hit_tokens, request.num_prompt_tokens)

    def on_outputs(self, outputs: Sequence[RequestOutput]) -> None:
        """Compare where an output is the first of its request."""
        for output in outputs:
            if output.num_cached_tokens is None and output.finish_reason is None:
                continue
            entry = self._open.pop((output.request_id, output.attempt), None)
            if entry is None or output.num_cached_tokens is None:
                continue
            instance, predicted, num_prompt_tokens = entry
            actual = output.num_cached_tokens
            self.predicted_tokens[instance] += round(predicted)
            self.actual_tokens[instance] += actual
            self._wrong_tokens += abs(predicted - actual)
            self._prompt_tokens += num_prompt_tokens
            self._num_compared += 1

    def tick(self) -> None:
        """Let the index age; raise the alarm."""
        self.index.tick()
        self._quiet_ticks = max(0, self._quiet_ticks - 1)
        if self._num_compared < ALARM_REQUESTS:
            return
        share = self._wrong_tokens / max(self._prompt_tokens, 1)
        if share > ALARM_SHARE and not self._quiet_ticks:
            self.num_alarms += 1
            self._quiet_ticks = _ALARM_TICKS
            log.warning(
                "cached tokens were predicted wrong by %.0f %% of the prompt tokens over %d requests",
                100 * share,
                self._num_compared,
            )
        self._wrong_tokens, self._prompt_tokens, self._num_compared = 0.0, 0, 0
