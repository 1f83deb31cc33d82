"""An event loop on a thread of its own, for callers that have none."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar, cast

from xllm.base.event_loop import new_event_loop
from xllm.errors import InvalidRequest, XllmError

T = TypeVar("T")
_CLOSE_S = 1.0


class Closable(Protocol):
    """What is closed on the loop before it stops."""

    async def close(self) -> None:
        """Let go of everything."""
        ...


async def all_or_none(jobs: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Every result, or the first error with the other jobs cancelled and ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def without_frames(error: Exception) -> Exception:
    """The same error without the frames of the loop's thread: asyncio keeps errors in reference cycles, and frames
    in those would keep a deleted LLM, and so its engine, alive until a garbage collection."""
    if not isinstance(error, XllmError):
        return error  # our bug: its frames are worth more
    fresh = copy.copy(error)
    error.__traceback__ = None
    return fresh


class LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="xllm LLM", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Any:
        """Begin ``work`` on the loop; the concurrent future of its result."""
        if not self._thread.is_alive():
            work.close()
            raise InvalidRequest("this LLM is closed", hint="make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and wait; an interrupted wait cancels it."""
        future = self.start(work)
        try:
            return cast(T, future.result())
        except XllmError as error:
            raise without_frames(error) from None
        except BaseException:
            future.cancel()
            raise

    def end(self, services: Sequence[Closable]) -> None:
        """Close the services and stop; never waits long, never fails."""
        if not self._thread.is_alive():
            return
        for service in services:
            try:
                asyncio.run_coroutine_threadsafe(service.close(), self._loop).result(_CLOSE_S)
            except TimeoutError:
                pass
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this very thread."""
        return threading.current_thread() is self._thread
