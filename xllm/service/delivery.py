"""Delivery: carries out what dispatch orders - sends and aborts to engines, answers to submitters, outputs to readers.

INVARIANTS
- A request has a sink from ``open`` until dispatch says that it is over.
- A submitter is answered once: an engine has queued its request, or none will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from xllm.api.backend import OutputSink
from xllm.base.waits import Wait, WaitTable
from xllm.errors import InstanceLost, InvalidRequest, XllmError
from xllm.service.cluster.cluster import Cluster
from xllm.service.connections import Connections
from xllm.service.dispatch.commands import Accepted, Command, Deliver, Refuse, Send, SendAbort
from xllm.service.dispatch.dispatch import DEADLINE_SLACK_S, DEFAULT_DEADLINE_S, Dispatch
from xllm.service.tasks import Tasks
from xllm.service.wire_names import WireNames
from xllm.types.ids import RequestId
from xllm.types.request import Request

SUBMIT_TIMEOUT_S = 30.0


class Delivery:
    """See the module; ``on_ended`` is told of every request that is over, before its reader is."""

    def __init__(
        self,
        dispatch: Dispatch,
        cluster: Cluster,
        connections: Connections,
        names: WireNames,
        *,
        waits: WaitTable,
        tasks: Tasks,
        on_ended: Callable[[RequestId], None],
    ) -> None:
        self._dispatch = dispatch
        self._cluster = cluster
        self._connections = connections
        self._names = names
        self._waits = waits
        self._tasks = tasks
        self._on_ended = on_ended
        self._sinks: dict[RequestId, tuple[OutputSink, Wait]] = {}
        self._submits: dict[RequestId, asyncio.Future[None]] = {}
        self._retry: asyncio.TimerHandle | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._sinks)

    def open(self, request: Request, sink: OutputSink, owner: str) -> None:
        """Outputs of the request go to ``sink`` from now on; ``owner`` is who has to send them."""
        bound_s = (request.deadline_in_s or DEFAULT_DEADLINE_S) + 2 * DEADLINE_SLACK_S
        wait = self._waits.watch(f"request {request.id}", f"outputs of {owner}", bound_s)
        self._sinks[request.id] = (sink, wait.__enter__())

    def expect_answer(self, request_id: RequestId) -> asyncio.Future[None]:
        """Done when an engine has queued the request, failed when none will; ``forget_answer`` when nobody waits."""
        submitted = self._submits[request_id] = asyncio.get_running_loop().create_future()
        return submitted

    def forget_answer(self, request_id: RequestId) -> None:
        """The submitter has gone on, or away."""
        self._submits.pop(request_id, None)

    def close(self) -> None:
        """No retries any more."""
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()

    def carry_out(self, commands: Sequence[Command]) -> None:
        """In their order; engines and readers that are gone are passed over."""
        for command in commands:
            if isinstance(command, Deliver):
                self._deliver(command)
            elif isinstance(command, SendAbort):
                self._send_abort(command)
            elif isinstance(command, Send):
                self._tasks.spawn(self._send(command))
            elif isinstance(command, Refuse):
                self._release(command.request_id)
                self.answer(command.request_id, command.error)
            else:
                assert isinstance(command, Accepted)
                self.answer(command.request_id, None)
        self._plan_retry()

    def answer(self, request_id: RequestId, error: XllmError | None) -> None:
        """Let the submitter go on; it may have given up long ago."""
        submitted = self._submits.get(request_id)
        if submitted is None or submitted.done():
            return
        if error is None:
            submitted.set_result(None)
        else:
            submitted.set_exception(error)

    # -- private --

    def _deliver(self, command: Deliver) -> None:
        sink = self._sinks[command.request_id][0]
        if command.request_id in self._submits:  # outputs may overtake the answer to submit
            self.answer(command.request_id, None)
        if command.is_last:
            self._release(command.request_id)
        if not sink.deliver(command.outputs):
            reason = "the client reads too slowly"
            self.carry_out(self._dispatch.abort(command.request_id, None, reason))

    def _release(self, request_id: RequestId) -> None:
        entry = self._sinks.pop(request_id, None)
        self._names.forget(request_id)
        if entry is not None:
            entry[1].__exit__(None, None, None)
        self._on_ended(request_id)

    def _send_abort(self, command: SendAbort) -> None:
        client = self._connections.clients.get(command.instance)
        if client is not None and not client.is_lost:
            client.send_abort(
                self._names.wire_id(command.request_id),
                attempt=command.attempt,
                choice=command.choice,
                reason=command.reason,
            )

    async def _send(self, command: Send) -> None:
        request = command.request
        instance = self._cluster.get(command.instance)
        client = self._connections.clients.get(command.instance)
        try:
            if client is None or instance is None:
                raise InstanceLost(
                    f"instance {command.instance} is not connected",
                    hint="/health says since when and why; the call may be repeated",
                )
            try:
                await client.submit(self._names.outgoing(request), deadline_s=SUBMIT_TIMEOUT_S)
            except InvalidRequest as error:
                # Dispatch has no second request of this id: the other one is another replica's. One that runs keeps
                # the name that its engine knows.
                is_free = request.id in self._dispatch and not self._dispatch.is_offered(request.id)
                if not self._names.is_clash(error) or not is_free:
                    raise
                await client.submit(self._names.rename(request), deadline_s=SUBMIT_TIMEOUT_S)
        except XllmError as error:
            self.carry_out(self._dispatch.on_refused(request.id, request.attempt, error))
        else:
            self.carry_out(self._dispatch.on_accepted(request.id, request.attempt))

    def _plan_retry(self) -> None:
        """A parked request is due before the next tick."""
        in_s = self._dispatch.next_retry_in_s()
        if in_s is None or self._retry is not None or self._is_closed:
            return
        self._retry = asyncio.get_running_loop().call_later(in_s, self._retry_parked)

    def _retry_parked(self) -> None:
        self._retry = None
        self.carry_out(self._dispatch.retry_parked())
