"""What a service tells of its instances and of itself: health, loads, decisions and waits."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from xllm.api.backend import BackendHealth, InstanceLoad, Row
from xllm.base.trace import DecisionTrace
from xllm.base.waits import WaitTable
from xllm.errors import XllmError
from xllm.rpc.client import EngineClient
from xllm.service.cluster.cluster import Cluster
from xllm.types.ids import InstanceId, RequestId
from xllm.types.instance import HealthReport

DEBUG_TIMEOUT_S = 2.0


def list_faults(cluster: Cluster) -> list[str]:
    """Why instances cannot be used."""
    faults = [instance.message for instance in cluster if not instance.is_healthy]
    return [fault for fault in faults if fault] + list(cluster.refused.values())


def build_health(cluster: Cluster) -> BackendHealth:
    """Healthy while some instance advances; and before one has joined, when there is nothing that could stand still."""
    is_healthy = any(instance.is_healthy for instance in cluster.served())
    message = "ok" if is_healthy else "; ".join(list_faults(cluster)) or "no engine is known"
    if cluster.group is None:
        is_healthy, message = True, "; ".join(["no engine has joined yet", *list_faults(cluster)])
    reports = {instance.info.id: instance.health for instance in cluster}
    reports |= {
        name: HealthReport(state="refused", step=0, layers_done=0, num_unfinished=0, idle_s=0.0, message=why)
        for name, why in cluster.refused.items()
    }
    return BackendHealth(is_healthy=is_healthy, message=message, instances=reports)


def build_loads(cluster: Cluster) -> tuple[InstanceLoad, ...]:
    """Last load report of each instance."""
    return tuple(
        InstanceLoad(
            id=instance.info.id,
            is_healthy=instance.is_healthy,
            load=instance.load,
            block_size=instance.info.block_size,
        )
        for instance in cluster
    )


async def gather_decisions(
    request_id: RequestId, wire_id: str, trace: DecisionTrace, clients: Mapping[InstanceId, EngineClient]
) -> list[Row]:
    """The service's decisions, then those of the engines, each with its source and its age."""
    rows: list[Row] = [
        {"source": "service", "age_s": item.age_s, "event": item.event, **item.fields}
        for item in trace.for_request(request_id)
    ]
    for instance_id, client in list(clients.items()):
        rows += await _ask(instance_id, client.debug_request(wire_id, deadline_s=DEBUG_TIMEOUT_S))
    return rows


async def gather_waits(waits: WaitTable, clients: Mapping[InstanceId, EngineClient]) -> list[Row]:
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
        for wait in waits.snapshot()
    ]
    for instance_id, client in list(clients.items()):
        rows += await _ask(instance_id, client.debug_waits(deadline_s=DEBUG_TIMEOUT_S))
    return rows


async def _ask(instance_id: InstanceId, call: Coroutine[Any, Any, list[Any]]) -> list[Row]:
    """Rows of an engine with their source; an engine that does not answer is a row that says so."""
    try:
        return [{"source": instance_id, **row} for row in await call]
    except XllmError as error:
        return [{"source": instance_id, "event": "no answer", "error": error.message}]
