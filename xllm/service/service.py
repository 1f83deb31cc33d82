"""Service: the edge's Backend over engines. The only file of the room with sockets and tasks.

It carries out what dispatch orders and feeds back what happens. All of it runs on one event loop.

INVARIANTS
- A request has a sink exactly while dispatch has it.
- ``submit`` returns or raises when dispatch says so: an engine has queued the request, or none will.
- A connection that is lost is opened again, with growing pauses, as long as its instance is published.
- Every task is held in ``_tasks`` and gone after ``close``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from xllm.api.backend import BackendHealth, InstanceLoad, OutputSink, Row, ServedModel
from xllm.api.text_pipeline import TextPipeline
from xllm.base.clock import Clock
from xllm.base.trace import DecisionTrace
from xllm.base.waits import Wait, WaitTable
from xllm.errors import CapacityError, ConfigError, DeadlineExceeded, InstanceLost, InvalidRequest, XllmError
from xllm.registry.registry import InstanceRecord, InstanceRegistry, RegistryEvent
from xllm.rpc.client import EngineClient
from xllm.service.cluster.cluster import TICK_S, Cluster
from xllm.service.cluster.view import ClusterView
from xllm.service.dispatch.commands import Accepted, Command, Deliver, Refuse, Send, SendAbort
from xllm.service.dispatch.dispatch import DEADLINE_SLACK_S, DEFAULT_DEADLINE_S, Dispatch
from xllm.service.overload import OverloadGate
from xllm.service.policy.score import Decision
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.service.router import Router
from xllm.service.wire_names import WireNames
from xllm.types.ids import InstanceId, RequestId
from xllm.types.instance import HealthReport
from xllm.types.output import OutputFrame
from xllm.types.request import Request, Route
from xllm.types.wire import KvEvents, LoadReply

log = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S = 30.0
DEBUG_TIMEOUT_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
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
    ) -> None:
        """``fails_over``: requests of a lost instance continue on another one."""
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
        self._peer = f"service-{secrets.token_hex(6)}"
        self._names = WireNames(self._peer)
        self._clients: dict[InstanceId, EngineClient] = {}
        self._sinks: dict[RequestId, tuple[OutputSink, Wait]] = {}
        self._submits: dict[RequestId, asyncio.Future[None]] = {}
        self._keepers: dict[InstanceId, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_draining = False
        self._is_closing = False
        self._changed = asyncio.Event()
        """Set when a connection came up or the last request ended; waiters clear it."""
        self._unwatch: Callable[[], None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._prefixes = PrefixFeeds()
        self._gate = gate or OverloadGate()

    # -- life --

    async def start(self, timeout_s: float) -> None:
        """Watch the registry and wait until one engine is connected.

        Raises:
            InstanceLost: none could be reached in time.
        """
        self._unwatch = self._registry.watch(self._on_registry)
        self._tick()
        try:
            await self._waits.bounded(
                self._until(lambda: any(i.info.id in self._clients for i in self._cluster.served())),
                owner="service",
                reason="an engine to connect to",
                timeout_s=timeout_s,
            )
        except DeadlineExceeded as exc:
            reasons = "; ".join(self._faults()) or "none is published for the served model"
            raise InstanceLost(f"no engine could be reached within {timeout_s:g} s: {reasons}") from exc
        self._model = self._build_model(self._cluster)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, let those in flight finish, then end the rest with an error."""
        self._is_draining = True
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
        error = CapacityError("the server is shutting down", status=503, retry_after_s=_LAST_WORDS_S)
        self._carry_out(self._dispatch.fail_all(error))

    async def close(self) -> None:
        """Hang up and leave no task."""
        self._is_draining = self._is_closing = True
        if self._ticker is not None:
            self._ticker.cancel()
        if self._retry is not None:
            self._retry.cancel()
        if self._unwatch is not None:
            self._unwatch()
        error = CapacityError("the server is shutting down", status=503)
        self._carry_out(self._dispatch.fail_all(error))
        tasks = [*self._keepers.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in list(self._clients.values()):
            await client.close()
        self._keepers.clear()
        self._clients.clear()

    # -- Backend --

    @property
    def model(self) -> ServedModel:
        """The served model."""
        assert self._model is not None, "start() comes first"
        return self._model

    @property
    def text(self) -> TextPipeline:
        """Its tokenizer and template."""
        return self._text

    async def submit(self, request: Request, sink: OutputSink) -> None:
        """Route a request and hand it to its engine; see Backend.submit."""
        if self._is_draining:
            raise CapacityError("the server is shutting down", status=503, retry_after_s=5.0)
        view = self._view()
        self._gate.check(request, view.instances)
        decision = self._router.decide(request, view)
        route = decision.route
        commands = self._dispatch.begin(structs.replace(request, route=route))
        self._note_decision(request, decision)
        bound_s = (request.deadline_in_s or DEFAULT_DEADLINE_S) + 2 * DEADLINE_SLACK_S
        wait = self._waits.watch(f"request {request.id}", f"outputs of {route.prefill}", bound_s)
        self._sinks[request.id] = (sink, wait.__enter__())
        self._gate.enter(request)
        submitted = self._submits[request.id] = asyncio.get_running_loop().create_future()
        self._carry_out(commands)
        try:
            await submitted  # bounded: dispatch has a deadline for every request
        finally:
            self._submits.pop(request.id, None)

    def abort(self, request_id: RequestId, *, choice: int | None = None, reason: str = "abort") -> None:
        """End a request or a choice; see Backend.abort."""
        self._carry_out(self._dispatch.abort(request_id, choice, reason))

    def is_ready(self) -> bool:
        """Whether a new request would be taken."""
        return not self._is_draining and bool(self._cluster.view().routable())

    def health(self) -> BackendHealth:
        """Healthy while some instance advances."""
        is_healthy = any(instance.is_healthy for instance in self._cluster.served())
        message = "ok" if is_healthy else "; ".join(self._faults()) or "no engine is known"
        reports = {instance.info.id: instance.health for instance in self._cluster}
        reports |= {
            name: HealthReport(
                state="refused", step=0, layers_done=0, num_unfinished=0, idle_s=0.0, message=reason
            )
            for name, reason in self._cluster.refused.items()
        }
        return BackendHealth(is_healthy=is_healthy, message=message, instances=reports)

    def loads(self) -> tuple[InstanceLoad, ...]:
        """Last load report of each instance."""
        return tuple(
            InstanceLoad(
                id=instance.info.id,
                is_healthy=instance.is_healthy,
                load=instance.load,
                block_size=instance.info.block_size,
            )
            for instance in self._cluster
        )

    async def debug_request(self, request_id: RequestId) -> Sequence[Row]:
        """The service's decisions, then those of the engines, each with its source and its age."""
        rows: list[Row] = [
            {"source": "service", "age_s": item.age_s, "event": item.event, **item.fields}
            for item in self._trace.for_request(request_id)
        ]
        wire_id = self._names.wire_id(request_id)
        for instance_id, client in list(self._clients.items()):
            rows += await self._ask(instance_id, client.debug_request(wire_id, deadline_s=DEBUG_TIMEOUT_S))
        return rows

    async def debug_waits(self) -> Sequence[Row]:
        """Waits of this process, then those of the engines."""
        rows: list[Row] = [
            {
                "source": "service",
                "owner": wait.owner,
                "reason": wait.reason,
                "age_s": wait.age_s,
                "remaining_s": wait.remaining_s,
                "overdue": wait.overdue,
            }
            for wait in self._waits.snapshot()
        ]
        for instance_id, client in list(self._clients.items()):
            rows += await self._ask(instance_id, client.debug_waits(deadline_s=DEBUG_TIMEOUT_S))
        return rows

    # -- orders --

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Deliver):
                self._deliver(command)
            elif isinstance(command, SendAbort):
                client = self._clients.get(command.instance)
                if client is not None and not client.is_lost:
                    client.send_abort(
                        self._names.wire_id(command.request_id),
                        attempt=command.attempt,
                        choice=command.choice,
                        reason=command.reason,
                    )
            elif isinstance(command, Send):
                self._spawn(self._send(command))
            elif isinstance(command, Refuse):
                self._release(command.request_id)
                self._answer_submit(command.request_id, command.error)
            else:
                assert isinstance(command, Accepted)
                self._answer_submit(command.request_id, None)
        self._plan_retry()

    def _answer_submit(self, request_id: RequestId, error: XllmError | None) -> None:
        """Let the submitter go on; it may have given up long ago."""
        submitted = self._submits.get(request_id)
        if submitted is None or submitted.done():
            return
        if error is None:
            submitted.set_result(None)
        else:
            submitted.set_exception(error)

    def _deliver(self, command: Deliver) -> None:
        sink = self._sinks[command.request_id][0]
        if command.request_id in self._submits:  # outputs may overtake the answer to submit
            self._answer_submit(command.request_id, None)
        if command.is_last:
            self._release(command.request_id)
        if not sink.deliver(command.outputs):
            self.abort(command.request_id, reason="the client reads too slowly")

    def _release(self, request_id: RequestId) -> None:
        entry = self._sinks.pop(request_id, None)
        self._gate.leave(request_id)
        self._prefixes.on_ended(request_id)
        self._names.forget(request_id)
        if entry is not None:
            entry[1].__exit__(None, None, None)
        if not len(self._dispatch):
            self._changed.set()

    async def _send(self, command: Send) -> None:
        request = command.request
        instance = self._cluster.get(command.instance)
        client = self._clients.get(command.instance)
        try:
            if client is None or instance is None:
                raise InstanceLost(f"instance {command.instance} is not connected")
            try:
                await client.submit(self._names.outgoing(request), deadline_s=SUBMIT_TIMEOUT_S)
            except InvalidRequest as error:
                # Dispatch has no second request of this id: the other one is another replica's.
                if not self._names.is_clash(error) or request.id not in self._dispatch:
                    raise
                await client.submit(self._names.rename(request), deadline_s=SUBMIT_TIMEOUT_S)
        except XllmError as error:
            self._carry_out(self._dispatch.on_refused(request.id, request.attempt, error))
        else:
            self._carry_out(self._dispatch.on_accepted(request.id, request.attempt))

    # -- events --

    def _on_registry(self, event: RegistryEvent) -> None:
        info = event.record.info
        known = self._cluster.get(info.id)
        if known is not None and known.info.incarnation == info.incarnation and event.kind != "removed":
            known.on_lease(event.kind == "added")
            return
        if known is not None:
            self._forget_instance(info.id, "was withdrawn")
        if event.kind == "added":
            try:
                self._cluster.add(info)
            except ConfigError as error:
                log.error("instance %s is refused: %s", info.id, error.message)
                return
            self._keepers[info.id] = asyncio.create_task(self._keep(event.record))
        elif known is None:
            self._cluster.remove(info.id)

    def _forget_instance(self, instance_id: InstanceId, reason: str) -> None:
        """End its keeper and connection; what it had is lost."""
        keeper = self._keepers.pop(instance_id, None)
        if keeper is not None:
            keeper.cancel()
        self._cluster.remove(instance_id)
        error = InstanceLost(f"instance {instance_id} {reason}")
        self._carry_out(self._dispatch.on_instance_lost(instance_id, error))
        client = self._clients.pop(instance_id, None)
        if client is not None:
            self._spawn(client.close())

    async def _keep(self, record: InstanceRecord) -> None:
        """Hold a connection to one instance for as long as it is published."""
        pause_s = _FIRST_PAUSE_S
        while True:
            lost = asyncio.Event()
            try:
                client = await self._connect(record, lost)
            except XllmError as error:
                self._note_lost(record.info.id, error)
            else:
                pause_s = _FIRST_PAUSE_S
                try:
                    await lost.wait()  # unbounded by nature: a connection lasts as long as it lasts
                finally:
                    if self._clients.get(record.info.id) is client:
                        del self._clients[record.info.id]
                    await client.close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _connect(self, record: InstanceRecord, lost: asyncio.Event) -> EngineClient:
        instance_id = record.info.id

        def on_lost(error: InstanceLost) -> None:
            self._note_lost(instance_id, error)
            lost.set()

        client = await EngineClient.connect(
            record.info.address,
            peer=self._peer,
            token=record.token,
            on_outputs=lambda frame: self._on_outputs(instance_id, frame),
            on_heartbeat=lambda reply: self._on_heartbeat(instance_id, reply),
            on_kv_events=lambda events: self._on_kv_events(instance_id, events),
            on_lost=on_lost,
            waits=self._waits,
        )
        try:
            info = await client.info()
        except XllmError:
            await client.close()
            raise
        if record.is_fenced and info.incarnation != record.info.incarnation:
            await client.close()
            raise InstanceLost(
                f"{record.info.address} is answered by another incarnation, {info.incarnation}"
            )
        instance = self._cluster.get(instance_id)
        is_same = instance is not None and instance.info.incarnation == info.incarnation
        if instance is not None:
            instance.on_connected(structs.replace(info, id=instance_id))
        self._clients[instance_id] = client
        if self._router.wants_prefixes:
            self._spawn(self._follow_cache(instance_id))
        self._changed.set()
        if is_same:
            self._carry_out(self._dispatch.on_instance_back(instance_id))
        else:
            self._carry_out(self._dispatch.retry_parked(now=True))
        return client

    def _on_outputs(self, instance_id: InstanceId, frame: OutputFrame) -> None:
        outputs = self._names.incoming(frame.outputs)
        self._prefixes.on_outputs(outputs)
        self._carry_out(self._dispatch.on_outputs(instance_id, outputs))

    def _on_kv_events(self, instance_id: InstanceId, events: KvEvents) -> None:
        if not self._prefixes.index.apply(instance_id, events.batch, is_snapshot=events.is_snapshot):
            log.warning("instance %s: KV events are missing; asking for all of them", instance_id)
            self._spawn(self._follow_cache(instance_id))

    async def _follow_cache(self, instance_id: InstanceId) -> None:
        """Subscribe (again) to an instance's KV events; without them it is routed to by load alone."""
        client = self._clients.get(instance_id)
        if client is not None:
            try:
                await client.subscribe_kv_events()
            except XllmError as error:
                log.warning("instance %s sends no KV events: %s", instance_id, error.message)

    def _on_heartbeat(self, instance_id: InstanceId, reply: LoadReply) -> None:
        instance = self._cluster.get(instance_id)
        if instance is not None:
            instance.on_heartbeat(reply)

    def _note_lost(self, instance_id: InstanceId, error: XllmError) -> None:
        instance = self._cluster.get(instance_id)
        if instance is not None:
            instance.on_lost(error.message)
        self._prefixes.index.purge(instance_id)
        if not self._is_closing:
            log.warning("instance %s: %s", instance_id, error.message)
        self._carry_out(self._dispatch.on_instance_lost(instance_id, error))

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._cluster.tick()
        for instance in self._cluster:
            client = self._clients.get(instance.info.id)
            if instance.is_given_up and client is not None and not client.is_lost:
                log.error("%s; its connection is cut", instance.message)
                self._spawn(client.close())
            elif instance.is_forgettable:
                self._forget_instance(instance.info.id, "has neither lease nor connection")
        self._give_up_stalled()
        self._prefixes.tick()
        self._carry_out(self._dispatch.tick())

    def _give_up_stalled(self) -> None:
        """Requests on an instance that is silent or stands still move on, once another one can take them."""
        served = self._cluster.served()
        stalled = [each for each in served if each.state in ("suspect", "degraded")]
        if not stalled or not any(each.state == "ready" for each in served):
            return
        for each in stalled:
            self._carry_out(self._dispatch.on_instance_lost(each.info.id, InstanceLost(each.message)))

    def _plan_retry(self) -> None:
        """A parked request is due before the next tick."""
        in_s = self._dispatch.next_retry_in_s()
        if in_s is None or self._retry is not None or self._is_closing:
            return
        self._retry = asyncio.get_running_loop().call_later(in_s, self._retry_parked)

    def _retry_parked(self) -> None:
        self._retry = None
        self._carry_out(self._dispatch.retry_parked())

    # -- small parts --

    def choose(self, request: Request, avoid: frozenset[InstanceId]) -> Route | None:
        """Where the next attempt of a request goes: dispatch asks."""
        decision = self._router.try_decide(request, self._view(), avoid)
        if decision is None:
            return None
        self._note_decision(request, decision)
        return decision.route

    def _note_decision(self, request: Request, decision: Decision) -> None:
        chosen = decision.chosen
        instance = self._cluster.get(chosen.instance)
        if instance is not None:
            instance.num_routed += 1
        self._trace.record(request.id, "scored", {"instance": chosen.instance, **chosen.parts})
        self._prefixes.on_routed(request, chosen.instance, chosen.parts.get("hit_tokens"))

    def _view(self) -> ClusterView:
        """The cluster now, with what this service has there now."""
        for instance in self._cluster:
            name = instance.info.id
            instance.num_inflight = self._dispatch.num_inflight(name)
            instance.num_pending_tokens = self._prefixes.pending_tokens[name]
            instance.num_pending_prompt_tokens = self._prefixes.pending_prompt_tokens[name]
        return replace(self._cluster.view(), prefixes=self._prefixes.index)

    def _faults(self) -> list[str]:
        """Why instances cannot be used."""
        faults = [instance.message for instance in self._cluster if not instance.is_healthy]
        return [fault for fault in faults if fault] + list(self._cluster.refused.values())

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _ask(self, instance_id: InstanceId, call: Coroutine[Any, Any, list[Any]]) -> list[Row]:
        """Rows of an engine with their source; an engine that does not answer is a row that says so."""
        try:
            return [{"source": instance_id, **row} for row in await call]
        except XllmError as error:
            return [{"source": instance_id, "event": "no answer", "error": error.message}]

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever awaited it has seen it; nobody else needs to
