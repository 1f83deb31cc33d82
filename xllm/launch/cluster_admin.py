"""What ``xllm cluster`` does: asks the registry, then every instance itself; drains one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from xllm.config.cluster import RegistryConfig
from xllm.errors import DeadlineExceeded, InstanceLost, NotFound, RegistryError, XllmError
from xllm.registry.open_store import open_store
from xllm.registry.records import (
    PublishedInstance,
    decode_instance,
    decode_service,
    instances_prefix,
    leader_key,
    services_prefix,
)
from xllm.registry.store import Store
from xllm.rpc.client import EngineClient

ASK_S = 3.0
POLL_S = 0.1

Row = dict[str, Any]


async def gather_status(registry: RegistryConfig, token: str) -> dict[str, list[Row]]:
    """Rows of instances, services and leaders; an instance that does not answer is a row that says so.

    Raises:
        RegistryError: the registry cannot be asked.
    """
    store = open_store(registry)
    try:
        instances = (await store.get_prefix(instances_prefix(registry.namespace))).items
        services = (await store.get_prefix(services_prefix(registry.namespace))).items
        leaders = (await store.get_prefix(leader_key(registry.namespace, ""))).items
    finally:
        await store.close()
    rows = await asyncio.gather(*(_instance_row(item.key, item.value, token) for item in instances))
    return {
        "instances": list(rows),
        "services": [_service_row(item.key, item.value) for item in services],
        "leaders": [
            {"duty": item.key.rpartition("/")[2], "holder": item.value.decode(errors="replace")}
            for item in leaders
        ],
    }


def group_roles(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """What ``gather_status`` found, by group (model and revision) and role; and who holds which duty, and where.

    A group is ``{"model", "revision", "roles": {role: number of instances}, "instances": [{"id", "role", "state"}]}``.
    """
    groups: dict[tuple[str, str], Row] = {}
    for row in sorted(found["instances"], key=lambda row: (row.get("role") or "", row["id"])):
        key = row.get("model") or "", row.get("revision") or ""
        empty: Row = {"model": key[0], "revision": key[1], "roles": {}, "instances": []}
        group = groups.setdefault(key, empty)
        role = row.get("role")
        if role:
            group["roles"][role] = group["roles"].get(role, 0) + 1
        group["instances"].append({"id": row["id"], "role": role, "state": row["state"]})
    urls = {row["id"]: row["url"] for row in found["services"]}
    leaders = [{**row, "url": urls.get(row["holder"], "")} for row in found["leaders"]]
    return {"groups": [groups[key] for key in sorted(groups)], "leaders": leaders}


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """Where a drain is."""

    num_unfinished: int
    """Requests that still run."""
    num_migrated: int
    """Requests that went on at another instance."""
    left_s: float
    """Until those that still run are ended."""


async def drain_instance(
    registry: RegistryConfig,
    instance_id: str,
    *,
    token: str,
    timeout_s: float,
    migrate_after_s: float | None = None,
    waits: bool = True,
    on_progress: Callable[[DrainProgress], None] = lambda progress: None,
) -> DrainProgress:
    """Stop an instance's admissions, wait for what it runs, end it; returns where that ended.

    What still runs after ``migrate_after_s`` goes on at another instance where one takes it (None: it stays), what is
    left after ``timeout_s`` is ended here. Without ``waits`` only the admissions are stopped: a later call ends it.

    Raises:
        NotFound: no such instance is published.
        InstanceLost, DeadlineExceeded: it cannot be reached, or does not end.
    """
    store = open_store(registry)
    try:
        published = await _find(store, registry, instance_id)
        client = await _connect(published, token)
        try:
            await client.drain(timeout_s, migrate_after_s)
            end_s = time.monotonic() + timeout_s
            progress = await _ask_progress(client, end_s)
            if not waits:
                return progress
            while progress.num_unfinished and time.monotonic() < end_s + ASK_S:
                on_progress(progress)
                await asyncio.sleep(POLL_S)
                progress = await _ask_progress(client, end_s)
            await client.shutdown()
        finally:
            await client.close()
        await _await_farewell(store, registry, published)
        return progress
    finally:
        await store.close()


async def _ask_progress(client: EngineClient, end_s: float) -> DrainProgress:
    health = await client.health()
    return DrainProgress(health.num_unfinished, health.num_migrated, max(0.0, end_s - time.monotonic()))


async def _await_farewell(store: Store, registry: RegistryConfig, published: PublishedInstance) -> None:
    deadline_s = time.monotonic() + 2 * registry.lease_ttl_s + ASK_S
    while time.monotonic() < deadline_s:
        try:
            found = await _find(store, registry, published.info.id)
        except NotFound:
            return
        if found.info.incarnation != published.info.incarnation:
            return
        await asyncio.sleep(POLL_S)
    raise DeadlineExceeded(
        f"instance {published.info.id} is still published after it was told to end",
        hint=f"its process is {published.info.pid} at {published.info.address}: look into its log, end it if it hangs;"
        " its record then goes with its lease",
    )


async def _find(store: Store, registry: RegistryConfig, instance_id: str) -> PublishedInstance:
    prefix = instances_prefix(registry.namespace)
    known = []
    for item in (await store.get_prefix(prefix)).items:
        if item.key == prefix + instance_id:
            return decode_instance(item.key, item.value)
        known.append(item.key.removeprefix(prefix))
    raise NotFound(
        f"no instance {instance_id!r} is published", hint="there are: " + (", ".join(known) or "none")
    )


async def _connect(published: PublishedInstance, token: str) -> EngineClient:
    """Connect, and make sure that it is the incarnation that was published."""
    client = await EngineClient.connect(
        published.info.address, peer="", token=published.token or token, deadline_s=ASK_S
    )
    try:
        info = await client.info()
        if info.incarnation != published.info.incarnation:
            raise InstanceLost(
                f"{published.info.address} is answered by incarnation {info.incarnation},"
                f" published is {published.info.incarnation}",
                hint="it has been started again since, or two engines share an address: look at xllm cluster status",
            )
    except XllmError:
        await client.close()
        raise
    return client


async def _instance_row(key: str, value: bytes, token: str) -> Row:
    try:
        published = decode_instance(key, value)
    except RegistryError as exc:
        return {"id": key.rpartition("/")[2], "state": "unreadable", "message": exc.message}
    info = published.info
    row: Row = {
        "id": info.id,
        "state": "lost",
        "model": info.model,
        "revision": info.revision,
        "role": info.role,
        "address": info.address,
        "incarnation": info.incarnation,
        "pid": info.pid,
        "num_running": None,
        "num_waiting": None,
        "blocks_used": None,
        "blocks_total": None,
        "message": "",
    }
    try:
        client = await _connect(published, token)
        try:
            reply = await client.load()
        finally:
            await client.close()
    except XllmError as exc:
        return row | {"message": exc.message}
    load = reply.load
    return row | {
        "state": reply.health.state,
        "num_running": load.num_running,
        "num_waiting": load.num_waiting,
        "blocks_used": load.blocks_used,
        "blocks_total": load.blocks_total,
        "message": reply.health.message,
    }


def _service_row(key: str, value: bytes) -> Row:
    try:
        row: Row = msgspec.to_builtins(decode_service(key, value))
    except RegistryError as exc:
        return {"id": key.rpartition("/")[2], "url": "", "message": exc.message}
    return row
