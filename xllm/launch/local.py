"""What the commands run on one machine: an engine, a service with its own engine, or a service over others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from msgspec import structs

from xllm.api.app import build_app
from xllm.api.serve import HttpServer, check_address
from xllm.api.text_pipeline import TextPipeline
from xllm.base.event_loop import run_event_loop
from xllm.base.garbage import collect_what_serving_makes
from xllm.base.phases import SPANS_MARK, Phases, format_spans
from xllm.base.waits import WaitTable, install_dump_signal
from xllm.config.cluster import InstanceConfig, RegistryConfig
from xllm.config.serve import EngineConfig, ServeConfig
from xllm.errors import InstanceLost
from xllm.launch.engine_process import EngineProcess
from xllm.launch.starting_engine import StartingEngine
from xllm.launch.supervisor import Supervisor
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord, InstanceRegistry
from xllm.rpc.client import EngineClient
from xllm.service.build import ServiceOptions, build_service, build_text

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
EXIT_ENGINE_LOST = 70
"""The engine process has ended and nothing was left to serve."""


def run_engine(
    config: EngineConfig, registry: RegistryConfig | None = None, instance: InstanceConfig | None = None
) -> int:
    """``xllm engine``: one engine in this process, until a signal comes; returns the exit status."""
    from xllm.engine.server import main as engine_main  # no other command runs an engine in its own process

    return engine_main.run_engine(config, token=config.server.rpc_token, registry=registry, instance=instance)


def serve(config: ServeConfig, starting: StartingEngine, phases: Phases) -> int:
    """``xllm serve``: the service and its edge, here, over an engine process; returns the exit status.

    Everything that can be done before the engine is ready is done while it loads.
    """
    try:
        check_address(config.api)
        with phases.measure("tokenizer"):
            text = build_text(config)
    except BaseException:
        starting.abandon()
        raise
    with phases.measure("waiting for the engine"):
        process = starting.wait()
    try:
        return run_event_loop(_serve(config, text, process, starting.start_again, phases))
    finally:
        process.close()


def run_service(config: ServeConfig, endpoints: Sequence[str]) -> int:
    """``xllm service``: the service and its edge over engines that run already; returns the exit status."""
    return run_event_loop(_serve_over(config, build_text(config), endpoints))


async def _serve(
    config: ServeConfig,
    text: TextPipeline,
    process: EngineProcess,
    start_again: Callable[[], EngineProcess],
    phases: Phases,
) -> int:
    began_s = time.monotonic()

    def report(url: str) -> None:
        phases.add("engine connected and HTTP listening", time.monotonic() - began_s)
        log.info("%s%s", SPANS_MARK, format_spans([*phases.spans, *process.spans]))

    registry = MemoryRegistry()

    def publish(running: EngineProcess) -> None:
        registry.publish(InstanceRecord(info=running.info, token=running.token))

    async def withdraw(ended: EngineProcess) -> None:
        log.critical("the engine process ended with status %s; new requests get 503", ended.returncode)
        registry.withdraw(ended.info.id)

    publish(process)
    supervisor = Supervisor([start_again], on_ended=withdraw, on_started_again=publish)
    supervisor.adopt([process])
    try:
        await run_edge(config, text, registry, on_listening=report)
        return 0 if supervisor.processes else EXIT_ENGINE_LOST
    finally:
        await supervisor.close()


async def _serve_over(config: ServeConfig, text: TextPipeline, endpoints: Sequence[str]) -> int:
    registry = MemoryRegistry()
    token = config.engine.server.rpc_token
    found = await asyncio.gather(
        *(_introduce(endpoint, token) for endpoint in endpoints), return_exceptions=True
    )
    for endpoint, record in zip(endpoints, found, strict=True):
        if isinstance(record, InstanceRecord):
            registry.publish(record)
        elif isinstance(record, InstanceLost) and len(endpoints) > 1:
            log.warning("engine %s is left out: %s", endpoint, record.message)
        else:
            raise record
    await run_edge(config, text, registry)
    return 0


async def _introduce(endpoint: str, token: str) -> InstanceRecord:
    client = await EngineClient.connect(endpoint, peer="", token=token, deadline_s=CONNECT_TIMEOUT_S)
    try:
        info = await client.info()
    finally:
        await client.close()
    return InstanceRecord(info=structs.replace(info, address=endpoint), token=token)


async def run_edge(
    config: ServeConfig,
    text: TextPipeline,
    registry: InstanceRegistry,
    *,
    waits: WaitTable | None = None,
    options: ServiceOptions | None = None,
    on_listening: Callable[[str], object] = lambda url: None,
) -> None:
    """Build the service over ``registry`` and serve it until a signal has ended everything."""
    waits = waits or WaitTable()
    install_dump_signal(waits, loop=asyncio.get_running_loop())
    service = await build_service(config, registry, text=text, waits=waits, options=options)
    greeting: list[asyncio.Task[None]] = []

    async def greet(url: str) -> None:
        if not service.model.is_known:
            log.info("listening at %s; no engine has joined yet, requests are answered 503", url)
            await service.until_joined()  # ends with the server
        collect_what_serving_makes()
        _greet(url, service.model.names[0], bool(config.api.api_key))

    def begin(url: str) -> None:
        greeting.append(asyncio.create_task(greet(url)))
        on_listening(url)

    try:
        server = HttpServer(build_app(service, config.api), config.api, service)
        await server.run(begin)
    finally:
        for task in greeting:
            task.cancel()
        await asyncio.gather(*greeting, return_exceptions=True)
        await service.close()


def _greet(url: str, model: str, needs_key: bool) -> None:
    """Say where the server is and, on stdout, a request that works as it stands."""
    log.info("serving %s at %s (docs at %s/docs)", model, url, url)
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
    key = " \\\n    -H 'Authorization: Bearer '\"$XLLM_API_KEY\"" if needs_key else ""
    print(
        f"Ask it something:\n  curl {url}/v1/chat/completions{key} \\\n"
        f"    -H 'Content-Type: application/json' \\\n    -d '{body}'",
        flush=True,
    )
