"""Service: the edge's Backend over engines.

It wires what happens on the connections to the cluster's books and to dispatch, and what dispatch orders to delivery.
All of it runs on one event loop.

INVARIANTS
- A request has a sink exactly while dispatch has it.
- ``submit`` returns or raises when dispatch says so: an engine has queued the request, or none will.
- Every task is held in ``_tasks`` and gone after ``close``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import structs

from xllm.api.backend import BackendHealth, InstanceLoad, OutputSink, Row, Sample, ServedModel
from xllm.api.text_pipeline import TextPipeline
from xllm.base.clock import Clock
from xllm.base.trace import DecisionTrace
from xllm.base.waits import WaitTable
from xllm.errors import DeadlineExceeded, InstanceLost, InvalidRequest, XllmError
from xllm.registry.registry import InstanceRegistry
from xllm.service.cluster.cluster import TICK_S, Cluster, Group
from xllm.service.cluster.view import ClusterView
from xllm.service.connections import Connections
from xllm.service.counts import Counts
from xllm.service.delivery import Delivery
from xllm.service.dispatch.dispatch import Dispatch
from xllm.service.hold_queue import HoldLimits
from xllm.service.holding import Holding
from xllm.service.overload import OverloadGate
from xllm.service.policy.score import Decision
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.service.refusals import ended_waiting, not_reached, shutting_down
from xllm.service.router import Router
from xllm.service.status import build_health, build_loads, gather_decisions, gather_waits, list_faults
from xllm.service.tasks import Tasks
from xllm.service.wire_names import WireNames
from xllm.types.ids import InstanceId, RequestId
from xllm.types.output import OutputFrame
from xllm.types.request import Request, Route, SloBudgets
from xllm.types.wire import KvEvents, LoadReply

log = logging.getLogger(__name__)

GIVEN_UP = ("suspect", "degraded")
"""States in which an instance is connected and its requests move on."""
_LAST_WORDS_S = 1.0
"""After a drain's deadline, how long readers may take to send the error to their clients."""


class Service:
    """See the module. ``start`` before anything else; ``close`` at the end."""

    def __init__(
        self,
        *,
        text: TextPipeline,
        cluster: Cluster,
        router: Router,
        dispatch: Dispatch,
        registry: InstanceRegistry,
        clock: Clock,
        waits: WaitTable,
        trace: DecisionTrace,
        build_model: Callable[[Cluster], ServedModel],
        gate: OverloadGate | None = None,
        fails_over: bool = True,
        default_slo: SloBudgets | None = None,
        hold: HoldLimits | None = None,
    ) -> None:
        """``fails_over``: requests of a lost instance continue on another one; ``default_slo``: see ClusterView."""
        self._default_slo = default_slo or SloBudgets()
        self._text = text
        self._cluster = cluster
        self._router = router
        self._dispatch = dispatch
        if fails_over:
            dispatch.choose = self.choose
        self._registry = registry
        self._clock = clock
        self._waits = waits
        self._trace = trace
        self._build_model = build_model
        self._model: ServedModel | None = None
        self._model_of: Group | None = None
        self._groups: dict[RequestId, Group] = {}
        """The group that each request runs in: it stays there."""
        self._peer = f"service-{secrets.token_hex(6)}"
        self._names = WireNames(self._peer)
        self._tasks = Tasks()
        self._connections = Connections(cluster, peer=self._peer, waits=waits, tasks=self._tasks)
        self._delivery = Delivery(
            dispatch, cluster, self._connections, self._names,
            waits=waits, tasks=self._tasks, on_ended=self._on_ended,
        )  # fmt: skip
        self._is_draining = False
        self._changed = asyncio.Event()
        """Set when a connection came up or the last request ended; waiters clear it."""
        self._ticker: asyncio.TimerHandle | None = None
        self._slicing: asyncio.Handle | None = None
        """Takes the next slice of KV events that wait."""
        self._prefixes = PrefixFeeds()
        self._gate = gate or OverloadGate()
        hold = hold or HoldLimits()
        self._holding = Holding(
            hold, clock=clock, waits=waits, look=self._view, begin=self._begin, refuse=self._refuse_held
        )
        self._counts = Counts()
        self._charges = hold.max_waiting_per_instance > 0

    # -- life --

    async def start(self, timeout_s: float | None) -> None:
        """Watch the registry and wait until one engine is connected; None: do not wait, requests get 503 until then.

        Raises:
            InstanceLost: none could be reached in time.
        """
        self._model = self._build_model(self._cluster)
        self._connections.watch(self._registry, self)
        self._tick()
        if timeout_s is None:
            return
        try:
            await self._waits.bounded(
                self.until_joined(),
                owner="service",
                reason="an engine to connect to",
                timeout_s=timeout_s,
            )
        except DeadlineExceeded as exc:
            reasons = "; ".join(list_faults(self._cluster)) or "none is published for the served model"
            raise not_reached(timeout_s, reasons) from exc

    async def until_joined(self) -> None:
        """Wait, without a bound of its own, until an engine of the served model is connected."""
        await self._until(self._is_connected)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and those that wait here, let those in flight finish, then end the rest with an error."""
        self._is_draining = True
        self._holding.close(shutting_down())
        if len(self._dispatch) and timeout_s > 0:
            try:
                await self._waits.bounded(
                    self._until(lambda: not len(self._dispatch)),
                    owner="service",
                    reason="requests in flight to end",
                    timeout_s=timeout_s,
                )
            except DeadlineExceeded:
                log.warning("%d requests did not end within %g s", len(self._dispatch), timeout_s)
        self._delivery.carry_out(self._dispatch.fail_all(shutting_down(_LAST_WORDS_S)))

    async def close(self) -> None:
        """Hang up and leave no task."""
        self._is_draining = True
        for timer in (self._ticker, self._slicing):
            if timer is not None:
                timer.cancel()
        self._delivery.close()
        error = shutting_down()
        self._holding.close(error)
        self._delivery.carry_out(self._dispatch.fail_all(error))
        await self._connections.close()
        await self._tasks.close()

    # -- Backend --

    @property
    def model(self) -> ServedModel:
        """The served model: as the connected instances of the served group have it."""
        assert self._model is not None, "start() comes first"
        return self._model

    @property
    def text(self) -> TextPipeline:
        """Its tokenizer and template."""
        return self._text

    async def submit(self, request: Request, sink: OutputSink) -> None:
        """Route a request and hand it to its engine; see Backend.submit."""
        if self._is_draining:
            raise shutting_down(5.0)
        view = self._view()
        self._gate.check(request, view.instances)
        if request.id in self._dispatch or request.id in self._holding.queue:
            raise InvalidRequest(
                f"request id {request.id!r} is in use", hint="choose another request_id", param="request_id"
            )
        submitted = self._delivery.expect_answer(request.id)
        try:
            if not self._holding.take(request, sink, view):
                self._gate.enter(request)
                self._counts.num_held += 1
                self._trace.record(request.id, "held", {"ahead": len(self._holding) - 1})
            await submitted  # bounded: dispatch and the queue have a deadline for every request
        finally:
            self._delivery.forget_answer(request.id)
            self._holding.drop(request.id, ended_waiting("the caller left"))

    def abort(self, request_id: RequestId, *, choice: int | None = None, reason: str = "abort") -> None:
        """End a request or a choice; see Backend.abort."""
        if choice is None and self._holding.drop(request_id, ended_waiting(reason)):
            return
        self._delivery.carry_out(self._dispatch.abort(request_id, choice, reason))

    def is_ready(self) -> bool:
        """Whether a new request would be taken."""
        return not self._is_draining and bool(self._cluster.view().routable())

    def health(self) -> BackendHealth:
        """Healthy while some instance advances."""
        return build_health(self._cluster)

    def loads(self) -> tuple[InstanceLoad, ...]:
        """Last load report of each instance."""
        return build_loads(self._cluster)

    def samples(self) -> Sequence[Sample]:
        """Decisions, losses, waiting requests, cached tokens as predicted and as found, states of instances."""
        return self._counts.samples(self._cluster, self._dispatch, self._holding.queue, self._prefixes)

    async def debug_request(self, request_id: RequestId) -> Sequence[Row]:
        """The service's decisions, then those of the engines, each with its source and its age."""
        wire_id = self._names.wire_id(request_id)
        return await gather_decisions(request_id, wire_id, self._trace, self._connections.clients)

    async def debug_waits(self) -> Sequence[Row]:
        """Waits of this process, then those of the engines."""
        return await gather_waits(self._waits, self._connections.clients)

    # -- what comes over the connections --

    def on_outputs(self, instance_id: InstanceId, frame: OutputFrame) -> None:
        """One step's outputs of an instance."""
        outputs = self._names.incoming(frame.outputs)
        self._prefixes.on_outputs(outputs)
        if self._charges:
            served: Counter[str] = Counter()
            for output in outputs:
                served[self._gate.tenant_of(output.request_id)] += len(output.token_ids)
            for tenant, num_tokens in served.items():
                self._holding.queue.charge(tenant, output_tokens=num_tokens)
        self._delivery.carry_out(self._dispatch.on_outputs(instance_id, outputs))

    def on_heartbeat(self, instance_id: InstanceId, reply: LoadReply) -> None:
        """Load and health of an instance."""
        instance = self._cluster.get(instance_id)
        was_given_up = instance is not None and instance.state in GIVEN_UP
        self._count(instance_id)
        self._cluster.on_heartbeat(instance_id, reply)
        if reply.health.hands_over:
            self._delivery.carry_out(self._dispatch.migrate(instance_id))
        self._refresh_model()
        self._holding.pump()
        if instance is not None and was_given_up and instance.state not in GIVEN_UP:
            self._delivery.carry_out(self._dispatch.on_instance_back(instance_id))

    def on_kv_events(self, instance_id: InstanceId, events: KvEvents) -> None:
        """Cache changes of an instance."""
        self._prefixes.take_events(instance_id, events)
        self._go_on_with_events()

    def on_connected(self, instance_id: InstanceId, *, is_same: bool) -> None:
        """An instance can be reached."""
        if self._router.wants_prefixes:
            self._tasks.spawn(self._follow_cache(instance_id))
        self._model_of = None
        self._refresh_model()
        self._changed.set()
        if is_same:
            self._delivery.carry_out(self._dispatch.on_instance_back(instance_id))
        else:
            self._delivery.carry_out(self._dispatch.retry_parked(now=True))
        self._holding.pump()

    def on_lost(self, instance_id: InstanceId, error: XllmError) -> None:
        """An instance is out of reach: what it had goes elsewhere."""
        if self._cluster.get(instance_id) is None:
            self._prefixes.forget(instance_id)
        else:
            self._prefixes.on_lost(instance_id)
        self._counts.lost["connection"] += self._dispatch.num_inflight(instance_id)
        self._delivery.carry_out(self._dispatch.on_instance_lost(instance_id, error))

    # -- time --

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._cluster.tick()
        self._refresh_model()
        for instance in self._cluster:
            if instance.is_given_up and self._connections.cut(instance.info.id):
                log.error("%s; its connection is cut", instance.message)
            elif instance.is_forgettable:
                self._connections.forget(instance.info.id, "has neither lease nor connection")
        self._give_up_stalled()
        self._prefixes.tick()
        self._delivery.carry_out(self._dispatch.tick())
        self._holding.tick()

    def _give_up_stalled(self) -> None:
        """Requests on an instance that is silent or stands still move on, once another of its group can take them."""
        ready = {each.info.group for each in self._cluster if each.state == "ready"}
        for each in self._cluster:
            if each.info.group in ready and each.state in GIVEN_UP:
                lost = InstanceLost(each.message)
                self._counts.lost["silent"] += self._dispatch.num_inflight(each.info.id)
                self._delivery.carry_out(self._dispatch.on_instance_lost(each.info.id, lost))

    # -- small parts --

    def _go_on_with_events(self) -> None:
        """Ask those that lost KV events for all of them, and let what waits have its turn of the loop."""
        for name in self._prefixes.take_gaps():
            log.warning("instance %s: KV events are missing; asking for all of them", name)
            self._tasks.spawn(self._follow_cache(name))
        if self._prefixes.has_backlog and self._slicing is None:
            self._slicing = asyncio.get_running_loop().call_soon(self._take_slice)

    def _take_slice(self) -> None:
        self._slicing = None
        self._prefixes.apply_slice()
        self._go_on_with_events()

    async def _follow_cache(self, instance_id: InstanceId) -> None:
        if not await self._connections.follow_cache(instance_id):
            self._prefixes.on_no_snapshot(instance_id)

    def choose(self, request: Request, avoid: frozenset[InstanceId]) -> Route | None:
        """Where the next attempt of a request goes: dispatch asks. Once it answers it stays in its group."""
        group = self._groups.get(request.id)
        decision = self._router.try_decide(request, self._view(group), avoid)
        if decision is None and group != self._cluster.group and not _has_begun(request):
            decision = self._router.try_decide(request, self._view(), avoid)
        if decision is None:
            return None
        self._note_decision(request, decision)
        return decision.route

    def _note_decision(self, request: Request, decision: Decision) -> None:
        chosen = decision.chosen
        instance = self._cluster.get(chosen.instance)
        if instance is not None:
            instance.on_routed()
            self._groups[request.id] = instance.info.group
            self._counts.note_routed(decision, instance.state)
        self._trace.record(request.id, "scored", {"instance": chosen.instance, **chosen.parts})
        self._prefixes.on_routed(request, chosen.instance, chosen.parts.get("hit_tokens"))

    def _on_ended(self, request_id: RequestId) -> None:
        """A request is over."""
        self._groups.pop(request_id, None)
        self._gate.leave(request_id)
        self._prefixes.on_ended(request_id)
        if not len(self._dispatch):
            self._changed.set()
        self._holding.pump()

    def _begin(self, request: Request, sink: OutputSink, view: ClusterView) -> None:
        """Route a new request and hand it to dispatch."""
        decision = self._router.decide(request, view)
        route = decision.route
        commands = self._dispatch.begin(structs.replace(request, route=route))
        self._note_decision(request, decision)
        self._gate.enter(request)
        if self._charges:
            num_new = request.num_prompt_tokens - decision.chosen.parts.get("hit_tokens", 0.0)
            self._holding.queue.charge(request.tenant, prompt_tokens=num_new)
        self._delivery.open(request, sink, route.prefill)
        self._delivery.carry_out(commands)

    def _refuse_held(self, request_id: RequestId, error: XllmError) -> None:
        """A request that waited here is over."""
        self._on_ended(request_id)
        self._delivery.answer(request_id, error)

    def _view(self, group: Group | None = None) -> ClusterView:
        """A group (None: the served one) now, with what this service has there now."""
        for name in self._dispatch.take_recounted() | self._prefixes.take_recounted():
            self._count(name)
        return ClusterView(
            instances=self._cluster.pictures(group),
            prefixes=self._prefixes.index,
            default_slo=self._default_slo,
        )

    def _count(self, name: InstanceId) -> None:
        """Tell an instance what this service has there."""
        instance = self._cluster.get(name)
        if instance is not None:
            instance.on_counted(
                num_inflight=self._dispatch.num_inflight(name),
                num_pending_tokens=self._prefixes.pending_tokens[name],
                num_pending_prompt_tokens=self._prefixes.pending_prompt_tokens[name],
            )

    def _refresh_model(self) -> None:
        """The served group, or who is in it, has changed; the last known model stays while nobody is there."""
        group = self._cluster.group
        if group is not None and group != self._model_of and self._is_connected():
            self._model_of = group
            self._model = self._build_model(self._cluster)

    def _is_connected(self) -> bool:
        return any(each.info.id in self._connections.clients for each in self._cluster.served())

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def _has_begun(request: Request) -> bool:
    """Whether its reader has got something: another revision would continue it with other weights."""
    return bool(request.resumed_output_ids or request.ended_choices)
