"""Entry of an engine process: configuration in, ready line out, serve until told to end.

``python -m xllm.engine.server --control-fd N`` is what :mod:`xllm.launch` runs; ``xllm engine`` calls
:func:`run_engine` without a parent.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

from msgspec import structs

from xllm.base.event_loop import run_event_loop
from xllm.base.garbage import collect_what_serving_makes, start_without_collecting
from xllm.base.log import setup_logging
from xllm.base.malloc import keep_step_buffers
from xllm.base.phases import measured, process_age_s
from xllm.base.waits import WaitTable, install_dump_signal
from xllm.config.cluster import InstanceConfig, RegistryConfig
from xllm.config.load import engine_config_from_plain, section_from_plain
from xllm.config.serve import EngineConfig
from xllm.engine.build import BuiltEngine, build_engine
from xllm.engine.server.control import (
    LineChannel,
    PhaseDone,
    Ready,
    StartEngine,
    StartFailed,
    StopEngine,
    ToEngineProcess,
    ToParent,
    WeightsProgress,
    watch_parent,
)
from xllm.engine.server.engine_server import EngineServer, ServerOptions
from xllm.engine.server.membership import Membership, check_advertised
from xllm.errors import ProtocolError, XllmError
from xllm.rpc.failure import to_failure
from xllm.types.instance import InstanceInfo

log = logging.getLogger(__name__)

EXIT_START_FAILED = 78
"""Configuration or model cannot work (EX_CONFIG); the reason was reported."""
EXIT_PARENT_GONE = 75
START_TIMEOUT_S = 30.0

ReportPhase = Callable[[str, float], object]


class Process:
    """What a signal or the parent may ask while the engine starts or serves."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: EngineServer | None = None
        self._stop: StopEngine | None = None

    def attach(self, server: EngineServer) -> None:
        """From now on stops reach ``server``; one that came before is obeyed now."""
        self._loop, self._server = asyncio.get_running_loop(), server
        if self._stop is not None:
            self._obey()

    def stop(self, message: StopEngine) -> None:
        """From any thread."""
        self._stop = message
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._obey)
            except RuntimeError:
                log.debug("a stop came after the end")

    def _obey(self) -> None:
        assert self._server is not None and self._stop is not None
        self._server.drain_and_end(self._stop.drain_s, self._stop.migrate_after_s)


def run_engine(
    config: EngineConfig,
    *,
    endpoint: str = "",
    token: str = "",
    registry: RegistryConfig | None = None,
    instance: InstanceConfig | None = None,
    process: Process | None = None,
    on_phase: ReportPhase = lambda phase, seconds: None,
    on_weights: Callable[[int, int], object] = lambda done, total: None,
    on_ready: Callable[[InstanceInfo], object] = lambda info: None,
) -> int:
    """Build the engine and serve until it ends; returns the exit status.

    Raises:
        ConfigError, ModelError, CapacityError: it cannot start.
    """
    keep_step_buffers()
    private_dir = ""
    registry, instance = registry or RegistryConfig(), instance or InstanceConfig()
    endpoint = endpoint or config.server.endpoint
    check_advertised(registry, instance, endpoint)
    if endpoint == "auto":
        private_dir = tempfile.mkdtemp(prefix="xllm-")
        endpoint = f"unix:{private_dir}/engine.sock"
    try:
        built = build_engine(config, endpoint=endpoint, on_phase=on_phase, on_weights=on_weights)
        info = structs.replace(built.info, id=instance.id or built.info.id, role=instance.role)
        waits = WaitTable()
        membership = Membership(registry, instance, token=token, waits=waits)
        serving = _serve(
            config,
            replace(built, info=info),
            endpoint,
            token,
            process or Process(),
            on_ready,
            membership,
            waits,
            on_phase,
        )
        return run_event_loop(serving)
    finally:
        if private_dir:
            shutil.rmtree(private_dir, ignore_errors=True)


async def _serve(
    config: EngineConfig,
    built: BuiltEngine,
    endpoint: str,
    token: str,
    process: Process,
    on_ready: Callable[[InstanceInfo], object],
    membership: Membership,
    waits: WaitTable,
    on_phase: ReportPhase,
) -> int:
    loop = asyncio.get_running_loop()
    options = ServerOptions(grace_s=config.server.grace_s, heartbeat_s=config.server.heartbeat_s, token=token)
    server = EngineServer(
        built.core,
        built.executor,
        built.info,
        options=options,
        waits=waits,
        clock=built.clock,
        profiler=built.profiler,
    )
    with measured("listening", on_phase):
        address = await server.start(endpoint)
    install_dump_signal(waits, loop=loop)
    limits = config.server
    stop = StopEngine(drain_s=limits.drain_timeout_s, migrate_after_s=limits.migrate_after_s)
    loop.add_signal_handler(signal.SIGTERM, process.stop, stop)
    loop.add_signal_handler(signal.SIGINT, process.stop, StopEngine(drain_s=0.0))
    process.attach(server)
    if config.scheduler.profile_startup:
        await server.profile_startup()
    collect_what_serving_makes()
    on_ready(server.info())
    log.info("ready at %s", address)
    membership.begin(server)
    try:
        return await server.run(before_close=membership.leave)
    finally:
        await membership.leave()
        built.save_fit()


def run_child(control: socket.socket) -> int:
    """Serve as the child of a process that holds the other end of ``control``."""
    age_s = process_age_s()
    channel: LineChannel[ToEngineProcess, ToParent] = LineChannel(control, ToEngineProcess)
    start = channel.receive(START_TIMEOUT_S)
    if not isinstance(start, StartEngine):
        raise ProtocolError(f"the first control message is {type(start).__name__}, not StartEngine")
    process = Process()

    def report(phase: str, seconds: float) -> None:
        channel.send(PhaseDone(phase=phase, seconds=seconds, end_s=time.monotonic()))

    report("interpreter and own imports", age_s)

    def leave() -> None:
        # The interpreter may be anywhere, also in a forward: nothing here may wait for it.
        if start.private_dir:
            shutil.rmtree(start.private_dir, ignore_errors=True)
        os._exit(EXIT_PARENT_GONE)

    watch_parent(channel, start.parent_pid, on_stop=process.stop, on_gone=leave)
    weights = _Sparse(lambda done, total: channel.send(WeightsProgress(done_bytes=done, total_bytes=total)))
    try:
        config = engine_config_from_plain(start.config)
        setup_logging(config.log, "engine")
        return run_engine(
            config,
            endpoint=start.endpoint,
            token=start.token,
            registry=None if start.registry is None else section_from_plain("registry", start.registry),
            instance=None if start.instance is None else section_from_plain("instance", start.instance),
            process=process,
            on_phase=report,
            on_weights=weights,
            on_ready=lambda info: channel.send(Ready(info=info)),
        )
    except XllmError as exc:
        channel.send(StartFailed(failure=to_failure(exc)))
        return EXIT_START_FAILED
    except Exception as exc:  # top loop of the process: the parent must learn of our bug, too
        log.exception("the engine cannot start")
        channel.send(StartFailed(failure=to_failure(exc)))
        return EXIT_START_FAILED


class _Sparse:
    """Passes progress on at most ten times a second, and always the end."""

    def __init__(self, report: Callable[[int, int], object]) -> None:
        self._report = report
        self._next_s = 0.0

    def __call__(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s or done >= total:
            self._next_s = now_s + 0.1
            self._report(done, total)


def main() -> None:
    """Run as a child process and leave without waiting for threads that may hang in a forward."""
    parser = argparse.ArgumentParser(prog="xllm.engine.server", description="Started by xllm.launch.")
    parser.add_argument("--control-fd", type=int, required=True)
    start_without_collecting()
    status = run_child(socket.socket(fileno=parser.parse_args().control_fd))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
