"""The HTTP edge over engines, from the configuration until the last stream has ended."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import structs

from xllm.api.app import build_app
from xllm.api.serve import HttpServer
from xllm.api.text_pipeline import TextPipeline
from xllm.base.waits import WaitTable, install_dump_signal
from xllm.config.serve import ServeConfig
from xllm.launch.engine_process import EngineProcess
from xllm.registry.memory import MemoryRegistry
from xllm.registry.registry import InstanceRecord
from xllm.rpc.client import EngineClient
from xllm.service.build import build_service, build_text
from xllm.types.instance import InstanceInfo

log = logging.getLogger(__name__)


def serve(config: ServeConfig) -> int:
    """``xllm serve``: start one engine and the edge over it; returns when both have ended.

    Raises:
        ConfigError, ModelError, CapacityError: what the engine or the edge cannot start with.
        InstanceLost: the engine died while starting.
    """
    starting = _EngineStart(config)
    try:
        text = build_text(config)  # tokenizer and template are read while the engine loads
    finally:
        engine = starting.result()
    try:
        record = InstanceRecord(info=engine.info, token=engine.token)
        return run_loop(_serve(config, [record], text=text))
    finally:
        engine.close()


def run_service(config: ServeConfig, endpoints: Sequence[str]) -> int:
    """``xllm service``: the edge over engines that run already.

    Raises:
        InstanceLost: an engine does not answer.
        ConfigError: the engines do not serve the same model.
    """

    async def run() -> int:
        token = config.engine.server.rpc_token
        records = []
        for endpoint in endpoints:
            client = await EngineClient.connect(endpoint, peer="", token=token)
            try:
                info = await client.info()
            finally:
                await client.close()
            records.append(InstanceRecord(info=_at(info, endpoint), token=token))
        return await _serve(config, records, text=build_text(config))

    return run_loop(run())


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main`` on a new event loop."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop: uvloop's where it is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        log.debug("uvloop is not installed; the standard event loop is used")
    return factory()


async def _serve(config: ServeConfig, records: Sequence[InstanceRecord], *, text: TextPipeline) -> int:
    waits = WaitTable()
    install_dump_signal(waits, loop=asyncio.get_running_loop())
    registry = MemoryRegistry()
    for record in records:
        registry.publish(record)
    service = await build_service(config, registry, text=text, waits=waits)
    try:
        server = HttpServer(build_app(service, config.api), config.api, service)
        await server.run(lambda url: _announce(url, service.model.names[0]))
    finally:
        await service.close()
    return 0


def _announce(url: str, model: str) -> None:
    log.info("serving %s at %s (docs at %s/docs)", model, url, url)


def _at(info: InstanceInfo, endpoint: str) -> InstanceInfo:
    """The info under the address that we reached it by: an engine may know itself by another one."""
    return structs.replace(info, address=endpoint)


class _EngineStart:
    """Starts an engine on a thread, so that the edge gets ready meanwhile."""

    def __init__(self, config: ServeConfig) -> None:
        self._engine: EngineProcess | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(config,), name="engine start")
        self._thread.start()

    def _run(self, config: ServeConfig) -> None:
        try:
            self._engine = EngineProcess.start(config.engine, on_weights=_WeightsBar())
        except BaseException as exc:
            self._error = exc

    def result(self) -> EngineProcess:
        """The engine; raises what the start raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._engine is not None
        return self._engine


class _WeightsBar:
    """A progress bar on a terminal; nothing where nobody watches."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if not self._is_shown or total_bytes <= 0:
            return
        share = done_bytes / total_bytes
        bar = "#" * int(30 * share)
        end = "\n" if done_bytes >= total_bytes else ""
        sys.stderr.write(f"\rweights [{bar:<30}] {100 * share:3.0f} % of {total_bytes / 2**30:.2f} GiB{end}")
        sys.stderr.flush()
