"""A real uvicorn on loopback over any backend, on its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from xllm.api.app import build_app
from xllm.api.serve import HttpServer
from xllm.config.api import ApiConfig


class EdgeServer:
    """``with EdgeServer(backend) as server: server.url``; leaving it shuts down and joins."""

    def __init__(self, backend: Any, **config: Any) -> None:
        config = {"host": "127.0.0.1", "port": 0, "shutdown_timeout_s": 5.0, **config}
        self.backend = backend
        self.url = ""
        self.num_tasks_left = -1
        self._config = ApiConfig(**config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: HttpServer | None = None
        self._listening = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="edge", daemon=True)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            self._failure = exc
        finally:
            self._listening.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = HttpServer(build_app(self.backend, self._config), self._config, self.backend)

        def told(url: str) -> None:
            self.url = url
            self._listening.set()

        await self._server.run(told, handles_signals=False)
        for _ in range(3):
            await asyncio.sleep(0)
        self.num_tasks_left = len(asyncio.all_tasks()) - 1

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function on the server's loop and wait for what it returns."""
        assert self._loop is not None

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(100)

    def begin_shutdown(self) -> None:
        assert self._server is not None
        self.call(self._server.begin_shutdown)

    def join(self) -> None:
        self._thread.join(100)
        assert not self._thread.is_alive(), "the server did not end"
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> EdgeServer:
        self._thread.start()
        assert self._listening.wait(100)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._thread.is_alive():
            self.begin_shutdown()
        self.join()
