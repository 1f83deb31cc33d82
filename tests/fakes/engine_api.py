"""RecordingEngineApi: an engine that only notes what it is asked; for tests of the RPC."""

from __future__ import annotations

from xllm.errors import CapacityError
from xllm.rpc.server import DebugRow, EngineConnection
from xllm.types.instance import HealthReport, InstanceInfo, LoadReport
from xllm.types.kv_event import KvEventBatch
from xllm.types.request import Request
from xllm.types.wire import LoadReply


class RecordingEngineApi:
    """Answers at once; ``max_requests`` submits are taken, later ones are refused with a CapacityError."""

    def __init__(self, max_requests: int = 10**9) -> None:
        self.max_requests = max_requests
        self.connections: list[EngineConnection] = []
        self.calls: list[tuple[object, ...]] = []
        self.requests: list[Request] = []
        self.lost: list[tuple[str, str]] = []

    def connected(self, connection: EngineConnection) -> None:
        self.connections.append(connection)

    def disconnected(self, connection: EngineConnection, reason: str) -> None:
        self.lost.append((connection.peer, reason))

    def submit(self, connection: EngineConnection, request: Request) -> None:
        if len(self.requests) >= self.max_requests:
            raise CapacityError("the queue is full", retry_after_s=3.0, hint="come back")
        self.requests.append(request)

    def abort(
        self, connection: EngineConnection, request_id: str, attempt: int, choice: int | None, reason: str
    ) -> None:
        self.calls.append(("abort", request_id, attempt, choice, reason))

    def load(self) -> LoadReply:
        return LoadReply(load=LoadReport(num_running=3), health=self.health())

    def health(self) -> HealthReport:
        return HealthReport(state="ready", step=1, layers_done=2, num_unfinished=3, idle_s=0.0)

    def info(self) -> InstanceInfo:
        return InstanceInfo(id="engine", incarnation="1", address="a", model="m")

    def drain(self, timeout_s: float, migrate_after_s: float | None = None) -> None:
        self.calls.append(("drain", timeout_s))

    def profile(self, action: str) -> None:
        self.calls.append(("profile", action))

    def reset_prefix_cache(self) -> None:
        raise ZeroDivisionError("a bug of ours")

    def subscribe_kv_events(self, connection: EngineConnection) -> None:
        connection.send_kv_events(KvEventBatch(0, ()), is_snapshot=True)

    def debug_request(self, request_id: str) -> list[DebugRow]:
        return [{"id": request_id, "age_s": 0.5}]

    def debug_waits(self) -> list[DebugRow]:
        return [{"owner": "nobody"}]

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))
