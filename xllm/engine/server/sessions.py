"""Which connection owns which request, and what happens to requests whose connection is lost.

A session belongs to a peer id. When its connection is lost, its requests go on for ``grace_s``; outputs made meanwhile
are kept. A new connection with the same peer id takes the session over: kept outputs are sent first, later ones follow.
Outputs that were in the old socket are gone; the reader sees a gap in ``first_token_index`` and treats the attempt as
lost. A connection that replaces a live one of the same peer closes that one. Anonymous peers ("") have no grace.

INVARIANTS
- Every choice of an accepted request is open until its terminal output was handed to its session; outputs of choices
  that are not open go nowhere. So no choice ends twice.
- A session without connection has a running grace timer and a wait entry, or is being dropped.
- At most ``max_kept_outputs`` are kept for an absent peer; then its requests end at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import structs

from xllm.base.waits import Wait, WaitTable
from xllm.errors import InstanceLost, InternalError, ProtocolError
from xllm.rpc.failure import to_output_error
from xllm.rpc.server import EngineConnection
from xllm.types.ids import RequestId, StepId
from xllm.types.output import OutputError, OutputFrame, RequestOutput
from xllm.types.request import Request

log = logging.getLogger(__name__)

RequestKey = tuple[RequestId, int]
"""(request id, attempt)."""


@dataclass(eq=False, slots=True)
class Session:
    """What an engine remembers of one peer."""

    peer: str
    connection: EngineConnection | None
    requests: set[RequestKey] = field(default_factory=set)
    kept: list[OutputFrame] = field(default_factory=list)
    num_kept: int = 0
    timer: asyncio.TimerHandle | None = None
    wait: Wait | None = None


@dataclass(eq=False, slots=True)
class _Owned:
    session: Session
    open_choices: set[int]


class Sessions:
    """See the module. ``abandon`` is asked to abort a request nobody waits for any more."""

    def __init__(
        self,
        *,
        grace_s: float,
        waits: WaitTable,
        abandon: Callable[[RequestKey, int | None, str], None],
        max_kept_outputs: int = 65_536,
    ) -> None:
        self._grace_s = grace_s
        self._waits = waits
        self._abandon = abandon
        self._max_kept_outputs = max_kept_outputs
        self._loop = asyncio.get_running_loop()
        self._by_peer: dict[str, Session] = {}
        self._by_connection: dict[EngineConnection, Session] = {}
        self._owned: dict[RequestKey, _Owned] = {}

    @property
    def connections(self) -> list[EngineConnection]:
        """Every live connection."""
        return list(self._by_connection)

    @property
    def num_requests(self) -> int:
        """Requests with an open choice."""
        return len(self._owned)

    @property
    def num_busy_peers(self) -> int:
        """Peers that have requests here; those that are away and may come back, too."""
        return len({id(owned.session) for owned in self._owned.values()})

    def connected(self, connection: EngineConnection) -> None:
        """A peer came, or came back."""
        peer = connection.peer
        session = self._by_peer.get(peer) if peer else None
        if session is None:
            session = Session(peer, connection)
            if peer:
                self._by_peer[peer] = session
            self._by_connection[connection] = session
            return
        old = session.connection
        session.connection = connection
        self._by_connection[connection] = session
        self._stop_grace(session)
        if old is not None:
            self._by_connection.pop(old, None)
            old.close("replaced by a newer connection of the same peer")
        log.info("peer %s is back, %d requests go on", peer, len(session.requests))
        kept, session.kept, session.num_kept = session.kept, [], 0
        for frame in kept:
            self._send(session, frame)

    def disconnected(self, connection: EngineConnection, reason: str) -> None:
        """A connection is gone; its requests end after the grace time unless the peer comes back."""
        session = self._by_connection.pop(connection, None)
        if session is None:
            return  # replaced before
        session.connection = None
        if not session.requests:
            self._drop(session)
        elif not session.peer or self._grace_s <= 0:
            self._end(session, f"the connection was lost: {reason}")
        else:
            log.warning(
                "peer %s is lost (%s); its %d requests end in %g s unless it comes back",
                session.peer, reason, len(session.requests), self._grace_s,
            )  # fmt: skip
            text = f"the peer of {len(session.requests)} requests to come back"
            session.wait = self._waits.watch(f"session {session.peer}", text, self._grace_s).__enter__()
            session.timer = self._loop.call_later(
                self._grace_s, self._end, session, f"the peer did not come back within {self._grace_s:g} s"
            )

    def own(self, connection: EngineConnection, request: Request) -> None:
        """An accepted request belongs to ``connection``'s session from now on."""
        session = self._by_connection[connection]
        key = (request.id, request.attempt)
        session.requests.add(key)
        self._owned[key] = _Owned(session, set(request.open_choices))

    def owns(self, connection: EngineConnection, key: RequestKey) -> bool:
        """Whether the request was submitted by this connection's peer and has an open choice."""
        owned = self._owned.get(key)
        return owned is not None and owned.session is self._by_connection.get(connection)

    def deliver(self, step: StepId, outputs: list[RequestOutput]) -> None:
        """Send each session its outputs as one frame."""
        groups: dict[Session, list[RequestOutput]] = {}
        for output in outputs:
            key = (output.request_id, output.attempt)
            owned = self._owned.get(key)
            if owned is None or output.choice not in owned.open_choices:
                continue
            if output.finish_reason is not None:
                self._close_choice(key, owned, output.choice)
            mine = groups.get(owned.session)
            if mine is None:
                groups[owned.session] = [output]
            else:
                mine.append(output)
        for session, mine in groups.items():
            self._send(session, OutputFrame(step, tuple(mine)))

    def end_open_choices(self, step: StepId, error: OutputError) -> None:
        """Give every open choice a terminal error output; for a core that can no longer do it."""
        outputs = [
            RequestOutput(request_id, attempt, choice, 0, (), finish_reason="error", error=error)
            for (request_id, attempt), owned in self._owned.items()
            for choice in sorted(owned.open_choices)
        ]
        self.deliver(step, outputs)

    def close(self) -> None:
        """Stop every timer."""
        for session in list(self._by_peer.values()):
            self._stop_grace(session)

    # -- private --

    def _close_choice(self, key: RequestKey, owned: _Owned, choice: int) -> None:
        owned.open_choices.discard(choice)
        if not owned.open_choices:
            del self._owned[key]
            owned.session.requests.discard(key)

    def _send(self, session: Session, frame: OutputFrame) -> None:
        if session.connection is None:
            session.kept.append(frame)
            session.num_kept += len(frame.outputs)
            if session.num_kept > self._max_kept_outputs:
                self._end(session, f"more than {self._max_kept_outputs} outputs wait for an absent peer")
            return
        try:
            session.connection.send_outputs(frame)
        except ProtocolError as exc:
            self._send_apart(session, session.connection, frame, exc)

    def _send_apart(
        self, session: Session, connection: EngineConnection, frame: OutputFrame, cause: ProtocolError
    ) -> None:
        """A frame cannot be sent as one: send each output alone; one that cannot be sent at all ends its choice."""
        for output in frame.outputs:
            try:
                connection.send_outputs(OutputFrame(frame.step, (output,)))
            except ProtocolError:
                log.error("an output of request %s cannot be sent: %s", output.request_id, cause.message)
                error = to_output_error(InternalError(f"an output cannot be sent: {cause.message}"))
                bare = structs.replace(
                    output,
                    token_ids=(),
                    logprobs=None,
                    prompt_logprobs=None,
                    finish_reason="error",
                    error=error,
                )
                connection.send_outputs(OutputFrame(frame.step, (bare,)))
                key = (output.request_id, output.attempt)
                if key in self._owned:
                    self._close_choice(key, self._owned[key], output.choice)
                self._abandon(key, output.choice, cause.message)

    def _end(self, session: Session, reason: str) -> None:
        """Abort everything the session owns and forget it."""
        keys = list(session.requests)
        self._drop(session)
        if keys:
            log.warning(
                "peer %s: %d requests are aborted: %s", session.peer or "without name", len(keys), reason
            )
        for key in keys:
            del self._owned[key]
        for key in keys:
            self._abandon(key, None, reason)

    def _drop(self, session: Session) -> None:
        self._stop_grace(session)
        session.requests.clear()
        session.kept.clear()
        if self._by_peer.get(session.peer) is session:
            del self._by_peer[session.peer]

    def _stop_grace(self, session: Session) -> None:
        if session.timer is not None:
            session.timer.cancel()
            session.timer = None
        if session.wait is not None:
            session.wait.__exit__(None, None, None)
            session.wait = None


def lost_output_error(message: str) -> OutputError:
    """The error of requests that an ending engine leaves behind: another instance may run them."""
    return to_output_error(InstanceLost(message))
