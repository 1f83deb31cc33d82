"""PrefixFeeds: the KV index of a service, the prompts it has sent out, and how well its predictions hold.

KV events go into the index as they come, large batches in slices so that a snapshot of a full cache does not hold the
loop; what an instance sends meanwhile waits behind it. A gap is told once, until the snapshot that was asked for comes.

A decision that rests on cached prefixes predicts how many prompt tokens the instance finds in its cache; the first
output of the request says how many it did find. The sums are metrics; when they part, the log says so once a minute.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec import structs

from xllm.base.tally import Tally
from xllm.service.kv_index import KvIndex
from xllm.types.ids import InstanceId, RequestId
from xllm.types.kv_event import KvEvent, KvEventBatch
from xllm.types.output import RequestOutput
from xllm.types.request import Request
from xllm.types.wire import KvEvents

log = logging.getLogger(__name__)

_OVER = object()
ALARM_REQUESTS = 50
ALARM_SHARE = 0.25
"""Alarm when, over this many requests, predictions were wrong by more than this share of the prompt tokens."""
_ALARM_TICKS = 120
SLICE_BLOCKS = 10_000
"""Blocks of a batch that go into the index at once: some milliseconds of work."""


class _Sent(NamedTuple):
    instance: InstanceId
    predicted_tokens: float | None
    num_pending: int
    num_prompt: int


class PrefixFeeds:
    """See the module.

    INVARIANTS
    - ``pending_*`` are sums over the requests sent that have neither output nor end.
    - What an instance sent is applied in its order; nothing of a feed that was lost is applied later.
    """

    def __init__(self, *, slice_blocks: int = SLICE_BLOCKS) -> None:
        self.index = KvIndex()
        self._slice_blocks = slice_blocks
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
        self._backlogs: dict[InstanceId, deque[Iterator[None]]] = {}
        """Per instance, batches that wait, the first one begun: each applies a slice of itself per step."""
        self._asked: set[InstanceId] = set()
        """Instances with a gap, until their snapshot comes."""
        self._gaps: list[InstanceId] = []
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

    @property
    def has_backlog(self) -> bool:
        """Whether there is something for ``apply_slice``."""
        return bool(self._backlogs)

    def take_events(self, instance: InstanceId, events: KvEvents) -> None:
        """Cache changes of an instance; small ones are applied at once where nothing waits."""
        if events.is_snapshot:
            self._asked.discard(instance)
            self._backlogs.pop(instance, None)
        applying = self._apply(instance, events)
        if instance not in self._backlogs and _is_small(events.batch.events, self._slice_blocks):
            for _ in applying:
                pass
        else:
            self._backlogs.setdefault(instance, deque()).append(applying)

    def apply_slice(self) -> None:
        """A slice of what waits; call it again while there is a backlog."""
        if not self._backlogs:
            return
        instance, backlog = next(iter(self._backlogs.items()))
        if next(backlog[0], _OVER) is _OVER:
            backlog.popleft()
        if not backlog:
            del self._backlogs[instance]

    def take_gaps(self) -> list[InstanceId]:
        """Instances that lost a batch since the last call: ask each for a snapshot."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def on_no_snapshot(self, instance: InstanceId) -> None:
        """It could not be asked: the next batch is another reason to try."""
        self._asked.discard(instance)

    def on_lost(self, instance: InstanceId) -> None:
        """Its connection is gone: what it holds is unknown until it is followed again."""
        self.index.purge(instance)
        self._backlogs.pop(instance, None)
        self._asked.discard(instance)

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
        self.on_lost(instance)
        self.predicted_tokens.pop(instance, None)
        self.actual_tokens.pop(instance, None)

    def on_ended(self, request_id: RequestId) -> None:
        """It is over, or goes elsewhere; unknown ones are fine."""
        if request_id in self._sent:
            self._forget(request_id)

    def _apply(self, instance: InstanceId, events: KvEvents) -> Iterator[None]:
        """Apply a batch, a slice per step."""
        slices = _slices(events.batch.events, self._slice_blocks)
        first = KvEventBatch(events.batch.sequence, next(slices, ()))
        if not self.index.apply(instance, first, is_snapshot=events.is_snapshot):
            if instance not in self._asked:
                self._asked.add(instance)
                self._gaps.append(instance)
            return
        yield
        for more in slices:
            self.index.extend(instance, more)
            yield

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


def _is_small(events: Sequence[KvEvent], most: int) -> bool:
    return len(events) <= most and sum(len(event.hashes) for event in events) <= most


def _slices(events: Sequence[KvEvent], most: int) -> Iterator[tuple[KvEvent, ...]]:
    """The same events, at most ``most`` blocks at a time."""
    part: list[KvEvent] = []
    room = most
    for event in events:
        while len(event.hashes) > room:
            part.append(structs.replace(event, hashes=event.hashes[:room]))
            event = structs.replace(event, hashes=event.hashes[room:])
            yield tuple(part)
            part, room = [], most
        part.append(event)
        room -= len(event.hashes)
    yield tuple(part)
