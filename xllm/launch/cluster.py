"""What the commands run in a cluster: a service with its own supervised engines, or a service over a registry."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from xllm import __version__
from xllm.api.text_pipeline import TextPipeline
from xllm.base.clock import MonotonicClock
from xllm.base.event_loop import run_event_loop
from xllm.base.machine import gather_machine_facts, query_gpu_facts
from xllm.base.waits import WaitTable
from xllm.config.cluster import ClusterConfig, InstanceConfig, RegistryConfig
from xllm.config.serve import EngineConfig, ServeConfig
from xllm.config.threads import split_cores
from xllm.errors import ConfigError, RegistryError
from xllm.launch.engine_process import EngineProcess
from xllm.launch.local import run_edge
from xllm.launch.supervisor import Supervisor
from xllm.registry.directory import Directory
from xllm.registry.local import LocalStore
from xllm.registry.open_store import open_store
from xllm.registry.publisher import Publisher
from xllm.registry.records import (
    PublishedService,
    decode_service,
    encode_record,
    instance_key,
    instances_prefix,
    leader_key,
    services_prefix,
)
from xllm.registry.rpc_server import RegistryListener
from xllm.registry.store import Store
from xllm.rpc.address import parse_address
from xllm.service.build import ServiceOptions, build_text
from xllm.service.cluster.instance import Patience
from xllm.service.election import Election

log = logging.getLogger(__name__)

CONTROLLER = "controller"
"""The duty of whoever decides for the whole cluster; one service replica holds it."""
FIRST_ENGINE_S = 60.0
"""How long ``xllm serve`` waits for the first of its own engines."""


def serve_cluster(
    config: ServeConfig, registry: RegistryConfig, cluster: ClusterConfig, *, num_instances: int
) -> int:
    """``xllm serve --instances N``: N supervised engine processes and, here, the service and its edge."""
    _check_endpoint(config.engine, num_instances)
    text = build_text(config)
    return run_event_loop(_serve(config, registry, cluster, num_instances, text))


def run_registered_service(
    config: ServeConfig, registry: RegistryConfig, cluster: ClusterConfig, *, hosts_registry: bool
) -> int:
    """``xllm service --registry URL``: the service and its edge over whatever engines join there."""
    if hosts_registry and registry.is_etcd:
        raise ConfigError("--host-registry needs a tcp:// or unix:// registry", hint="etcd is its own server")
    return run_event_loop(_serve_registered(config, registry, cluster, hosts_registry, build_text(config)))


async def _serve(
    config: ServeConfig,
    registry: RegistryConfig,
    cluster: ClusterConfig,
    num_instances: int,
    text: TextPipeline,
) -> int:
    waits = WaitTable()
    private_dir, engines = "", give_own_cores(config.engine, num_instances)
    if not registry.url:
        private_dir = tempfile.mkdtemp(prefix="xllm-")
        registry = replace(registry, url=f"unix:{private_dir}/registry.sock")
    token = config.engine.server.rpc_token or secrets.token_hex(16)
    try:
        async with _opened(registry, waits, hosts=not registry.is_etcd) as (store, opened):
            starts: list[Callable[[], EngineProcess]] = [
                partial(
                    EngineProcess.start,
                    engines[slot],
                    token=token,
                    registry=opened,
                    instance=InstanceConfig(id=f"engine-{slot}"),
                )
                for slot in range(num_instances)
            ]
            supervisor = Supervisor(starts, on_ended=partial(_strike_off, store, opened.namespace))
            await supervisor.start()
            try:
                await _run(config, opened, cluster, text, store, token, waits, first_engine_s=FIRST_ENGINE_S)
            finally:
                await supervisor.close()
    finally:
        if private_dir:
            shutil.rmtree(private_dir, ignore_errors=True)
    return 0


async def _serve_registered(
    config: ServeConfig,
    registry: RegistryConfig,
    cluster: ClusterConfig,
    hosts_registry: bool,
    text: TextPipeline,
) -> int:
    waits = WaitTable()
    token = config.engine.server.rpc_token
    async with _opened(registry, waits, hosts=hosts_registry) as (store, opened):
        await _run(config, opened, cluster, text, store, token, waits, first_engine_s=None)
    return 0


def give_own_cores(engine: EngineConfig, num_instances: int) -> list[EngineConfig]:
    """The configuration of each engine: cores of its own where steps run on the CPU and nobody has said otherwise.

    Without that every engine would start as many threads as there are cores, and they would wait for each other.
    """
    runner = engine.runner
    is_open = runner.cpu_set == "auto" and runner.num_threads is None and engine.server.executor == "local"
    is_cpu = runner.device == "cpu" or (runner.device == "auto" and query_gpu_facts() is None)
    parts = split_cores(gather_machine_facts(), num_instances) if is_open and is_cpu else []
    if not parts:
        return [engine] * num_instances
    log.info("each engine has CPUs of its own: %s", "; ".join(parts))
    return [replace(engine, runner=replace(runner, cpu_set=part)) for part in parts]


@asynccontextmanager
async def _opened(
    registry: RegistryConfig, waits: WaitTable, *, hosts: bool
) -> AsyncIterator[tuple[Store, RegistryConfig]]:
    """The store, hosted here or elsewhere, and the registry with the address it really has."""
    if not hosts:
        store = open_store(registry, waits=waits)
        try:
            yield store, registry
        finally:
            await store.close()
        return
    local = LocalStore()
    listener = await RegistryListener.start(registry.url, local, token=registry.token, waits=waits)
    address = str(listener.address)
    url = address if listener.address.path else f"tcp://{address}"
    log.info("the registry is at %s", url)
    try:
        yield local, replace(registry, url=url)
    finally:
        await listener.close()
        await local.close()


async def _run(
    config: ServeConfig,
    registry: RegistryConfig,
    cluster: ClusterConfig,
    text: TextPipeline,
    store: Store,
    token: str,
    waits: WaitTable,
    *,
    first_engine_s: float | None,
) -> None:
    """The edge over the instances of ``store``, itself published there once it listens."""
    directory = Directory(store, instances_prefix(registry.namespace), token=token)
    directory.start()
    publishers: list[Publisher] = []
    elections: list[Election] = []
    options = ServiceOptions(
        patience=Patience(
            suspect_after_s=cluster.suspect_after_s,
            lost_after_s=cluster.lost_after_s,
            forget_after_s=cluster.forget_after_s,
        ),
        serves_any_model=False,
        connect_timeout_s=first_engine_s,
    )

    def publish(url: str) -> None:
        service_id = f"service-{secrets.token_hex(4)}"
        publishers.append(_publish_service(store, registry, service_id, url))
        key = leader_key(registry.namespace, CONTROLLER)
        elections.append(Election(store, key, service_id, ttl_s=registry.lease_ttl_s, clock=MonotonicClock()))
        elections[-1].start()

    try:
        await run_edge(config, text, directory, waits=waits, options=options, on_listening=publish)
    finally:
        for election in elections:
            await election.close()
        for publisher in publishers:
            await publisher.close()
        await directory.close()


def _publish_service(store: Store, registry: RegistryConfig, service_id: str, url: str) -> Publisher:
    record = PublishedService(id=service_id, url=url, pid=os.getpid(), version=__version__)
    key = services_prefix(registry.namespace) + record.id

    def is_mine(value: bytes) -> bool:
        try:
            return decode_service(key, value).id == record.id
        except RegistryError:
            return True

    publisher = Publisher(
        store,
        key,
        encode_record(record),
        ttl_s=registry.lease_ttl_s,
        is_mine=is_mine,
        on_clash=lambda message: log.error("the service is not listed: %s", message),
    )
    publisher.start()
    return publisher


async def _strike_off(store: Store, namespace: str, process: EngineProcess) -> None:
    """The engine is known to be dead: its successor need not wait until its lease has ended."""
    key = instance_key(namespace, process.info.id)
    try:
        for item in (await store.get_prefix(key)).items:
            if item.key == key:
                await store.try_set(key, None, expected_revision=item.revision)
    except RegistryError as exc:
        log.warning("registry: %s stays until its lease ends: %s", key, exc.message)


def _check_endpoint(config: EngineConfig, num_instances: int) -> None:
    endpoint = config.server.endpoint
    if num_instances > 1 and endpoint != "auto":
        address = parse_address(endpoint)
        if address.path or address.port:
            raise ConfigError(
                f"{num_instances} engines cannot all listen on {endpoint}",
                hint="leave --endpoint away, or use port 0",
            )
