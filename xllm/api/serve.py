"""Runs the edge on uvicorn: readiness first to go on SIGTERM, streams in flight finish, then the socket closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from xllm.api.turn_writes import build_turn_protocol
from xllm.config.api import ApiConfig
from xllm.errors import ConfigError

logger = logging.getLogger(__name__)


class Drainable(Protocol):
    """What ends with the server: refuse new requests, finish those in flight, abort the rest."""

    async def drain(self, timeout_s: float) -> None:
        """Return when nothing is in flight any more, at most a little after ``timeout_s``."""
        ...


class HttpServer:
    """One listening socket and its way down; ``run`` returns when the server has ended."""

    def __init__(self, app: ASGIApp, config: ApiConfig, backend: Drainable) -> None:
        self._config = config
        self._backend = backend
        self._drain: asyncio.Task[None] | None = None
        settings = uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            http=build_turn_protocol(),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody asks where a request came from
            timeout_keep_alive=int(config.keep_alive_s),
            timeout_graceful_shutdown=5,
            root_path=config.root_path,
        )
        self._server = uvicorn.Server(settings)
        # Signals are ours: uvicorn would stop accepting at once instead of draining.
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]

    async def run(
        self,
        on_listening: Callable[[str], Awaitable[None] | None] | None = None,
        *,
        handles_signals: bool = True,
    ) -> None:
        """Listen until :meth:`begin_shutdown` (or SIGTERM, SIGINT) has drained everything.

        Raises:
            ConfigError: the address cannot be bound.
        """
        listener = _listen(self._config.host, self._config.port)
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT) if handles_signals else ()
        for number in signals:
            loop.add_signal_handler(number, self.begin_shutdown)
        try:
            host, port = listener.getsockname()[:2]
            serving = asyncio.create_task(self._server.serve([listener]))
            while not (self._server.started or serving.done()):
                await asyncio.sleep(0.005)
            if on_listening is not None and not serving.done():
                shown = f"[{host}]" if ":" in host else host
                told = on_listening(f"http://{shown}:{port}")
                if told is not None:
                    await told
            await serving
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            listener.close()
            if self._drain is not None:
                with contextlib.suppress(asyncio.CancelledError):  # by a second signal
                    await self._drain

    def begin_shutdown(self) -> None:
        """Start the way down; a second call ends at once."""
        if self._drain is not None:
            self._drain.cancel()
            self._server.should_exit = True
            self._server.force_exit = True
            return
        self._drain = asyncio.get_running_loop().create_task(self._shut_down())

    async def _shut_down(self) -> None:
        logger.info(
            "draining: new requests get 503, those in flight have %g s", self._config.shutdown_timeout_s
        )
        try:
            await self._backend.drain(self._config.shutdown_timeout_s)
        finally:
            self._server.should_exit = True


def check_address(config: ApiConfig) -> None:
    """Find out before a model is loaded whether the server will be able to listen.

    Raises:
        ConfigError: the address cannot be bound.
    """
    _listen(config.host, config.port).close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Its protocol number is given: asyncio switches Nagle's algorithm off only then."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, socket.IPPROTO_TCP)
    except OSError as exc:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {exc}", hint="use an address of this machine"
        ) from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {exc.strerror}", hint="use a free --port"
        ) from exc
    return listener
