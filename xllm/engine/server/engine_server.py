"""EngineServer: one engine behind its RPC. Implements EngineApi over step loop, sessions, progress and KV feed.

INVARIANTS
- Everything here runs on the event loop and returns at once; a forward that hangs delays no answer.
- ``run`` returns once, with the exit status; before that every accepted request has had its terminal outputs sent, or
  its peer is gone.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import structs

from xllm.base.clock import Clock, MonotonicClock
from xllm.base.waits import Wait, WaitTable
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.executor.profiler import NullProfiler, Profiler
from xllm.engine.ports import Executor
from xllm.engine.server.kv_feed import KvFeed
from xllm.engine.server.progress import Progress
from xllm.engine.server.sessions import RequestKey, Sessions, lost_output_error
from xllm.engine.server.startup_profile import profile_startup
from xllm.engine.server.step_loop import StepLoop
from xllm.errors import InstanceLost, InvalidRequest, XllmError
from xllm.rpc.failure import to_output_error
from xllm.rpc.link import LinkLimits
from xllm.rpc.server import DebugRow, EngineConnection, EngineListener
from xllm.types.ids import RequestId, StepId
from xllm.types.instance import HealthReport, InstanceInfo, InstanceState
from xllm.types.output import RequestOutput
from xllm.types.request import Request
from xllm.types.wire import MIGRATED, LoadReply

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_FAILED = 70
"""The engine failed while serving (EX_SOFTWARE)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Resolved settings of the server."""

    grace_s: float = 10.0
    """See :mod:`xllm.engine.server.sessions`."""
    heartbeat_s: float = 0.5
    """Between two unasked load reports."""
    max_stall_s: float = 300.0
    """Without any progress for this long while there is work, the engine gives itself up."""
    close_timeout_s: float = 5.0
    """How long the executor may take to close."""
    token: str = ""
    """Shared secret of the RPC."""
    tls: ssl.SSLContext | None = None
    """Server side TLS."""
    limits: LinkLimits = LinkLimits()
    """Bounds of each connection."""


class EngineServer:
    """Serves one engine; see the module. Made inside a running event loop."""

    def __init__(
        self,
        core: EngineCore,
        executor: Executor,
        info: InstanceInfo,
        *,
        options: ServerOptions | None = None,
        waits: WaitTable | None = None,
        clock: Clock | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self._options = options or ServerOptions()
        self._waits = waits or WaitTable()
        self._core = core
        self._executor = executor
        self._info = info
        self._profiler: Profiler = profiler or NullProfiler()
        self._state: InstanceState = "starting"
        self._message = ""
        self._loop = asyncio.get_running_loop()
        self._progress = Progress(core, executor, clock or MonotonicClock())
        self._feed = KvFeed(core)
        self._sessions = Sessions(grace_s=self._options.grace_s, waits=self._waits, abandon=self._abandon)
        self._steps = StepLoop(
            core,
            executor,
            waits=self._waits,
            deliver=self._deliver,
            on_dead=self._on_dead,
            max_step_s=self._options.max_stall_s,
        )
        self._listener: EngineListener | None = None
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._ends_when_drained = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self._drain_wait: Wait | None = None
        self._hands_over_at_s: float | None = None
        """On the loop's clock: from then on services may take away what it runs."""
        self._num_migrated = 0
        self._heartbeat: asyncio.TimerHandle | None = None

    # -- life --

    async def start(self, address: str) -> str:
        """Start the executor and listen; returns the address to connect to.

        Raises:
            ConfigError: nobody can listen there.
        """
        self._listener = await EngineListener.start(
            address,
            self,
            engine_id=self._info.id,
            token=self._options.token,
            tls=self._options.tls,
            limits=self._options.limits,
            waits=self._waits,
        )
        self._info = structs.replace(self._info, address=str(self._listener.address))
        self._steps.start()
        self._state = "ready"
        self._beat()
        return self._info.address

    async def profile_startup(self) -> None:
        """Measure steps before anybody is served; see :mod:`xllm.engine.server.startup_profile`."""
        steps = self._steps
        await profile_startup(self._core, steps.add, steps.abort, lambda: steps.is_dead)

    async def run(self, *, before_close: Callable[[], Awaitable[None]] | None = None) -> int:
        """Serve until the engine is to end, then flush and close; returns the process's exit status.

        ``before_close`` (bounded by itself) runs while the connections are still open: time for a farewell.
        """
        status = await self._ended
        if before_close is not None:
            await before_close()
        for timer in (self._heartbeat, self._drain_timer):
            if timer is not None:
                timer.cancel()
        self._steps.close()
        self._sessions.close()
        if self._listener is not None:
            await self._listener.close(self._message or "the engine has ended")
        closing = asyncio.ensure_future(asyncio.to_thread(self._executor.close))
        await asyncio.wait([closing], timeout=self._options.close_timeout_s)
        if not closing.done():
            log.warning("the executor did not close within %g s", self._options.close_timeout_s)
            closing.cancel()
        return status

    def end(self, message: str, status: int = EXIT_OK) -> None:
        """End now: unfinished requests get an error output that lets another instance take them."""
        if self._ended.done():
            return
        if self._core.num_unfinished or self._sessions.num_requests:
            self._steps.abort_all("shutdown", lost_output_error(message))
            self._sessions.end_open_choices(self._core.step, lost_output_error(message))
        self._message = self._message or message
        self._ended.set_result(status)

    def drain_and_end(self, timeout_s: float, migrate_after_s: float | None = None) -> None:
        """What SIGTERM asks for: refuse new requests, finish or hand over the others within ``timeout_s``, then end."""
        self._ends_when_drained = True
        self.drain(timeout_s, migrate_after_s)

    # -- EngineApi --

    def connected(self, connection: EngineConnection) -> None:
        """A service has greeted."""
        self._sessions.connected(connection)
        connection.send_heartbeat(self.load())

    def disconnected(self, connection: EngineConnection, reason: str) -> None:
        """A service is gone."""
        self._feed.unsubscribe(connection)
        self._sessions.disconnected(connection, reason)

    def submit(self, connection: EngineConnection, request: Request) -> None:
        """Queue a request for this connection."""
        self._steps.add(request)
        self._sessions.own(connection, request)

    def abort(
        self,
        connection: EngineConnection,
        request_id: RequestId,
        attempt: int,
        choice: int | None,
        reason: str,
    ) -> None:
        """End a request or a choice of it; another service's is none of its business."""
        if self._sessions.owns(connection, (request_id, attempt)):
            self._num_migrated += reason == MIGRATED
            self._steps.abort(request_id, attempt, choice, reason)

    def load(self) -> LoadReply:
        """Load and health now."""
        load = structs.replace(self._core.load(), num_services=self._sessions.num_busy_peers)
        return LoadReply(load=load, health=self.health())

    def health(self) -> HealthReport:
        """Progress now."""
        return HealthReport(
            state=self._state,
            step=self._core.step,
            layers_done=self._executor.layers_done,
            num_unfinished=self._core.num_unfinished,
            idle_s=self._progress.idle_s(),
            message=self._message,
            hands_over=self._hands_over_at_s is not None and self._loop.time() >= self._hands_over_at_s,
            num_migrated=self._num_migrated,
        )

    def info(self) -> InstanceInfo:
        """Identity and capabilities."""
        return structs.replace(self._info, state=self._state)

    def drain(self, timeout_s: float, migrate_after_s: float | None = None) -> None:
        """Refuse new requests; from ``migrate_after_s`` on let services take away what runs; abort the rest after
        ``timeout_s``. A second call sets both times anew.
        """
        for name, seconds in (("timeout_s", timeout_s), ("migrate_after_s", migrate_after_s)):
            if seconds is not None and not 0 <= seconds <= 86_400:
                raise InvalidRequest(f"drain {name} is {seconds}", hint="use 0 to 86400 seconds", param=name)
        if self._state not in ("ready", "draining"):
            return
        self._state = "draining"
        self._core.begin_drain()
        self._stop_drain_timer()
        log.info("draining: %d unfinished, at most %g s", self._core.num_unfinished, timeout_s)
        self._drain_wait = self._waits.watch("drain", "requests in flight to end", timeout_s).__enter__()
        self._drain_timer = self._loop.call_later(timeout_s, self._drain_is_over)
        self._hands_over_at_s = None if migrate_after_s is None else self._loop.time() + migrate_after_s
        self._check_drained()

    def profile(self, action: Literal["start", "stop"]) -> None:
        """Start or stop the profiler."""
        if action == "start":
            self._profiler.start()
        else:
            self._profiler.stop()

    def reset_prefix_cache(self) -> None:
        """Forget every cached block that no sequence uses."""
        self._core.reset_prefix_cache()
        self._feed.publish()

    def subscribe_kv_events(self, connection: EngineConnection) -> None:
        """Snapshot now, changes from now on."""
        self._feed.subscribe(connection)

    def debug_request(self, request_id: RequestId) -> Sequence[DebugRow]:
        """Scheduling decisions about a request, oldest first."""
        return [_plain(row) for row in self._core.explain(request_id)]

    def debug_waits(self) -> Sequence[DebugRow]:
        """Every wait of the process."""
        return [
            {
                "owner": wait.owner,
                "reason": wait.reason,
                "age_s": wait.age_s,
                "remaining_s": wait.remaining_s,
                "overdue": wait.overdue,
            }
            for wait in self._waits.snapshot()
        ]

    def shutdown(self) -> None:
        """End the process, after this call was answered."""
        self._loop.call_soon(self.end, "the engine was told to shut down")

    # -- private --

    def _deliver(self, step: StepId, outputs: list[RequestOutput]) -> None:
        if outputs:
            self._sessions.deliver(step, outputs)
        self._feed.publish()
        if self._state == "draining":
            self._check_drained()

    def _abandon(self, key: RequestKey, choice: int | None, reason: str) -> None:
        self._steps.abort(key[0], key[1], choice, "abort")

    def _on_dead(self, error: XllmError) -> None:
        self._state = "dead"
        self._message = error.message
        # Whatever broke it here, another instance may still run the requests.
        lost = InstanceLost(f"the engine died: {error.message}")
        self._sessions.end_open_choices(self._core.step, to_output_error(lost))
        for connection in self._sessions.connections:
            connection.send_heartbeat(self.load())
        self.end(error.message, EXIT_FAILED)

    def _beat(self) -> None:
        """Tell every service how things are, and give up when nothing has advanced for too long."""
        self._heartbeat = self._loop.call_later(self._options.heartbeat_s, self._beat)
        reply = self.load()
        for connection in self._sessions.connections:
            connection.send_heartbeat(reply)
        if reply.health.idle_s > self._options.max_stall_s:
            self._steps.fail(InstanceLost(f"no step or layer has advanced for {reply.health.idle_s:.0f} s"))

    def _check_drained(self) -> None:
        if self._core.num_unfinished == 0:
            if self._drain_timer is not None:
                log.info("drained: %d requests went on elsewhere", self._num_migrated)
            self._stop_drain_timer()
            if self._ends_when_drained:
                self.end("the engine has drained and ends")

    def _drain_is_over(self) -> None:
        log.warning("drain deadline passed: %d unfinished are aborted", self._core.num_unfinished)
        self._steps.abort_all(
            "drain deadline", lost_output_error("the engine shuts down; its drain deadline passed")
        )
        self._check_drained()

    def _stop_drain_timer(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None
        if self._drain_wait is not None:
            self._drain_wait.__exit__(None, None, None)
            self._drain_wait = None


def _plain(row: Mapping[str, Any]) -> DebugRow:
    return {
        key: value if value is None or isinstance(value, str | int | float | bool) else str(value)
        for key, value in row.items()
    }
