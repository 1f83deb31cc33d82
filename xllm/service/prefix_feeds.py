"""PrefixFeeds: the KV index of a service, the prompts it has sent out, and how well its predictions hold.

A decision that rests on cached prefixes predicts how many prompt tokens the instance finds in its cache; the first
output of the request says how many it did find. The sums are metrics; when they part, the log says so once a minute.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from xllm.base.tally import Tally
from xllm.service.kv_index import KvIndex
from xllm.types.ids import InstanceId, RequestId
from xllm.types.output import RequestOutput
from xllm.types.request import Request

log = logging.getLogger(__name__)

ALARM_REQUESTS = 50
ALARM_SHARE = 0.25
"""Alarm when, over this many requests, predictions were wrong by more than this share of the prompt tokens."""
_ALARM_TICKS = 120


class _Sent(NamedTuple):
    instance: InstanceId
    predicted_tokens: float | None
    num_pending: int
    num_prompt: int


class PrefixFeeds:
    """See the module.

    INVARIANT: ``pending_*`` are sums over the requests sent that have neither output nor end.
    """

    def __init__(self) -> None:
        self.index = KvIndex()
        self.predicted_tokens: Counter[InstanceId] = Counter()
        self.actual_tokens: Counter[InstanceId] = Counter()
        self.pending_tokens: Counter[InstanceId] = Counter()
        """Per instance, prompt tokens to compute for requests without output."""
        self.pending_prompt_tokens = Tally()
        """Per instance, all prompt tokens of those; both change together."""
        self.num_predicted_tokens = 0
        self.num_actual_tokens = 0
        self.num_wrong_tokens = 0
        """Sums over all instances ever, for /metrics; the last is of absolute differences."""
        self.num_alarms = 0
        self._sent: dict[RequestId, _Sent] = {}
        self._wrong_tokens = 0.0
        self._prompt_tokens = 0
        self._num_compared = 0
        self._quiet_ticks = 0

    def on_routed(self, request: Request, instance: InstanceId, hit_tokens: float | None) -> None:
        """An attempt was sent to ``instance``; ``hit_tokens`` None: the policy predicted nothing."""
        self.on_ended(request.id)
        num_prompt = request.num_prompt_tokens
        num_pending = num_prompt - int(hit_tokens or 0)
        if hit_tokens is not None:
            self.index.expect(instance, request.block_hashes)
        predicted = None if request.resumed_output_ids else hit_tokens
        self._sent[request.id] = _Sent(instance, predicted, num_pending, num_prompt)
        self.pending_tokens[instance] += num_pending
        self.pending_prompt_tokens[instance] += num_prompt

    def take_recounted(self) -> set[InstanceId]:
        """Instances whose ``pending_*`` were set since the last call."""
        return self.pending_prompt_tokens.take_changed()

    def on_outputs(self, outputs: Sequence[RequestOutput]) -> None:
        """The first output of a request: its prompt is computed, and what was cached is known."""
        for output in outputs:
            if output.request_id not in self._sent:
                continue
            sent = self._forget(output.request_id)
            actual = output.num_cached_tokens
            if sent.predicted_tokens is None or actual is None:
                continue
            self.predicted_tokens[sent.instance] += round(sent.predicted_tokens)
            self.actual_tokens[sent.instance] += actual
            self.num_predicted_tokens += round(sent.predicted_tokens)
            self.num_actual_tokens += actual
            self.num_wrong_tokens += abs(round(sent.predicted_tokens) - actual)
            self._wrong_tokens += abs(sent.predicted_tokens - actual)
            self._prompt_tokens += sent.num_prompt
            self._num_compared += 1

    def forget(self, instance: InstanceId) -> None:
        """It is gone for good."""
        self.index.purge(instance)
        self.predicted_tokens.pop(instance, None)
        self.actual_tokens.pop(instance, None)

    def on_ended(self, request_id: RequestId) -> None:
        """It is over, or goes elsewhere; unknown ones are fine."""
        if request_id in self._sent:
            self._forget(request_id)

    def _forget(self, request_id: RequestId) -> _Sent:
        sent = self._sent.pop(request_id)
        self.pending_tokens[sent.instance] -= sent.num_pending
        self.pending_prompt_tokens[sent.instance] -= sent.num_prompt
        if not self.pending_prompt_tokens[sent.instance]:
            del self.pending_tokens[sent.instance], self.pending_prompt_tokens[sent.instance]
        return sent

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
