"""What every Backend owes the edge, for each implementation in the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tests.fakes.backend import FakeBackend
from tests.fakes.served_engine import make_request, served_engine, until
from tests.unit.service.test_service import Sink, serving
from xllm.api.backend import Backend
from xllm.errors import CapacityError


@asynccontextmanager
async def fake() -> AsyncIterator[Any]:
    yield FakeBackend(max_model_len=400)


@asynccontextmanager
async def service() -> AsyncIterator[Any]:
    async with served_engine() as engine, serving(engine) as parts:
        yield parts.service


IMPLEMENTATIONS: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {
    "fake": fake,
    "service": service,
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_backend(name: str) -> None:
    async def scene(backend: Backend) -> None:
        assert backend.is_ready() and backend.health().is_healthy
        assert backend.model.names and backend.model.max_model_len == 400
        assert [load.is_healthy for load in backend.loads()] == [True]

        whole, first, aborted, shared = Sink(), Sink(), Sink(), Sink()
        await backend.submit(make_request("whole", 9, n=2), whole)
        await backend.submit(make_request("one-choice", 300, n=2), first)
        await backend.submit(make_request("aborted", 300), aborted)
        for part in ("a", "b"):
            await backend.submit(make_request(part, 3), shared)
        backend.abort("one-choice", choice=1, reason="stop")
        backend.abort("aborted")
        backend.abort("never heard of")
        await until(
            lambda: len(whole.reasons) == 2 and len(shared.reasons) == 2 and len(aborted.reasons) == 1
        )
        assert whole.reasons == ["length", "length"] and len(whole.tokens) == 18
        assert aborted.reasons == ["abort"]
        assert {output.request_id for output in shared.outputs} == {"a", "b"}
        ended = {o.choice: o.finish_reason for o in first.outputs if o.finish_reason}
        assert ended.get(1) == "stop"
        backend.abort("one-choice")
        await until(lambda: len(first.reasons) == 2)
        for sink in (whole, first, aborted, shared):
            keys = [(o.request_id, o.choice) for o in sink.outputs if o.finish_reason]
            assert len(keys) == len(set(keys)), "a choice ended twice"

        assert await backend.debug_request("whole")
        assert not await backend.debug_request("never heard of")
        assert isinstance(await backend.debug_waits(), list)

        await backend.drain(100.0)  # type: ignore[attr-defined]
        assert not backend.is_ready()
        with pytest.raises(CapacityError) as caught:
            await backend.submit(make_request("late"), Sink())
        assert caught.value.status == 503

    async def run() -> None:
        async with asyncio.timeout(240), IMPLEMENTATIONS[name]() as backend:
            await scene(backend)

    asyncio.run(run())
