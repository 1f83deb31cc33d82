"""Holding: whether a new request goes to an instance at once or waits here, and when it goes on.

INVARIANTS
- While a request waits here dispatch does not know it; its submitter is answered when an engine has queued it, or
  with the error that ends its waiting.
- Whoever waits has a deadline: the request's own, and ``max_stranded_s`` while no instance can take anything.
- Somebody waits only while no instance has room, or while the queue is being worked off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from msgspec import structs

from xllm.api.backend import OutputSink
from xllm.base.clock import Clock
from xllm.base.waits import Wait, WaitTable
from xllm.errors import XllmError
from xllm.service.cluster.view import ClusterView
from xllm.service.hold_queue import Held, HoldLimits, HoldQueue
from xllm.service.refusals import late_in_queue, no_engine
from xllm.types.ids import RequestId
from xllm.types.request import Request

DEFAULT_WAIT_S = 3600.0

Begin = Callable[[Request, OutputSink, ClusterView], None]
"""Route a request over a view and hand it to dispatch; raises what refuses it."""


class Holding:
    """See the module."""

    def __init__(
        self,
        limits: HoldLimits,
        *,
        clock: Clock,
        waits: WaitTable,
        look: Callable[[], ClusterView],
        begin: Begin,
        refuse: Callable[[RequestId, XllmError], None],
    ) -> None:
        """``look`` shows the served group; ``begin`` and ``refuse`` start and end a request."""
        self.queue = HoldQueue(clock, limits)
        self._max_waiting = limits.max_waiting_per_instance
        self._max_stranded_s = limits.max_stranded_s
        self._clock = clock
        self._waits = waits
        self._look = look
        self._begin = begin
        self._refuse = refuse
        self._sinks: dict[RequestId, tuple[OutputSink, Wait]] = {}
        self._stranded_at_s: float | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self.queue)

    def take(self, request: Request, sink: OutputSink, view: ClusterView) -> bool:
        """Begin the request or let it wait; True: it has begun.

        Raises:
            CapacityError: no instance can serve, or too many wait already.
        """
        open_view = self._with_room(view)
        if not self.queue and (open_view.instances or not view.routable()):
            self._begin(request, sink, open_view if open_view.instances else view)
            return True
        displaced = self.queue.push(request)
        bound_s = (request.deadline_in_s or DEFAULT_WAIT_S) + 2 * self._max_stranded_s
        wait = self._waits.watch(f"request {request.id}", "an instance with room", bound_s)
        self._sinks[request.id] = (sink, wait.__enter__())
        if displaced is not None:
            self._leave(displaced.held.request.id)
            self._refuse(displaced.held.request.id, displaced.error)
        self.pump()
        return request.id not in self.queue

    def pump(self) -> None:
        """Begin as many as there is room for."""
        while self.queue and not self._is_closed:
            view = self._with_room(self._look())
            if not view.instances:
                return
            held = self.queue.try_pop()
            assert held is not None
            sink = self._leave(held.request.id)
            try:
                self._begin(self._aged(held), sink, view)
            except XllmError as error:
                self._refuse(held.request.id, error)

    def drop(self, request_id: RequestId, error: XllmError) -> bool:
        """It need not wait any more; its submitter gets ``error``. False: it does not wait."""
        if not self.queue.remove(request_id):
            return False
        self._leave(request_id)
        self._refuse(request_id, error)
        return True

    def close(self, error: XllmError) -> None:
        """Nobody waits any more, from now on."""
        self._is_closed = True
        self._drop_all(error)

    def tick(self) -> None:
        """End those whose deadline has passed, and all when nobody could serve them for too long."""
        if not self.queue:
            self._stranded_at_s = None
            return
        for held in self.queue.overdue():
            self.drop(held.request.id, late_in_queue())
        if self._look().routable():
            self._stranded_at_s = None
            self.pump()
            return
        now_s = self._clock.now()
        if self._stranded_at_s is None:
            self._stranded_at_s = now_s
        elif now_s - self._stranded_at_s >= self._max_stranded_s:
            self._drop_all(no_engine("none has been ready since this began to wait"))

    # -- private --

    def _drop_all(self, error: XllmError) -> None:
        for request_id in list(self._sinks):
            self.drop(request_id, error)

    def _with_room(self, view: ClusterView) -> ClusterView:
        """The instances that may get a new request; all of the routable ones where nothing is held."""
        if not self._max_waiting:
            return view
        found = tuple([item for item in view.routable() if item.has_room(self._max_waiting)])
        return replace(view, instances=found)

    def _leave(self, request_id: RequestId) -> OutputSink:
        sink, wait = self._sinks.pop(request_id)
        wait.__exit__(None, None, None)
        return sink

    def _aged(self, held: Held) -> Request:
        """As it is now: older, and with less time left."""
        waited_s, request = self._clock.now() - held.since_s, held.request
        left_s = request.deadline_in_s
        return structs.replace(
            request,
            age_s=request.age_s + waited_s,
            deadline_in_s=None if left_s is None else max(0.001, left_s - waited_s),
        )
