from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.openai_server import WORDS, FakeOpenAI, running
from xllm.bench.openai_client import OpenAIClient, SseParser
from xllm.errors import InstanceError, InstanceLost, InvalidRequest, NotFound, ProtocolError, Unauthorized


def with_server(test: Callable[[FakeOpenAI, OpenAIClient], Awaitable[None]], **knobs: Any) -> FakeOpenAI:
    async def main() -> FakeOpenAI:
        async with running(FakeOpenAI(**knobs)) as fake:
            async with OpenAIClient(fake.url, api_key="k") as client:
                await test(fake, client)
        return fake

    return asyncio.run(main())


@given(st.lists(st.integers(0, 200), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_sse_events_do_not_depend_on_chunking(cuts: list[int], newline: bytes) -> None:
    lines = [
        b": ping",
        b"",
        b'data: {"a": 1}',
        b"id: 7",
        b"",
        b"data:x",
        b"data: y",
        b"",
        b"",
        "data: é".encode(),
        b"",
    ]
    raw = newline.join([*lines, b""])
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    parser = SseParser()
    events = [e for a, b in pairwise(edges) for e in parser.feed(raw[a:b])]
    assert events == ['{"a": 1}', "x\ny", "é"]


def test_a_stream_yields_every_event_and_ends_at_done() -> None:
    async def test(fake: FakeOpenAI, client: OpenAIClient) -> None:
        body = {"prompt": "hi", "stream_options": {"include_usage": True}}
        events = [event async for event in client.stream("/v1/completions", body)]
        text = "".join(choice["text"] for event in events for choice in event["choices"])
        assert text == "".join(WORDS)
        assert events[-1]["usage"]["completion_tokens"] == len(WORDS)

    with_server(test)


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("FAIL-STATUS", InvalidRequest, "you asked for it"),
        ("FAIL-STREAM", InstanceError, "engine died"),
        ("FAIL-CUT", InstanceLost, "ended before"),
    ],
)
def test_failures_are_typed_and_never_look_like_an_answer(
    prompt: str, error: type[Exception], message: str
) -> None:
    async def test(fake: FakeOpenAI, client: OpenAIClient) -> None:
        with pytest.raises(error, match=message):
            async for _ in client.stream("/v1/completions", {"prompt": prompt}):
                pass

    with_server(test)


def test_wrong_key_wrong_route_no_server() -> None:
    async def test(fake: FakeOpenAI, client: OpenAIClient) -> None:
        with pytest.raises(Unauthorized, match="--api-key"):
            await client.post_json("/v1/completions", {})
        with pytest.raises(NotFound):
            await client.get_json("/v1/nothing")
        async with OpenAIClient("http://127.0.0.1:9") as nobody:
            assert await nobody.get_status("/ready") is None
            with pytest.raises(InstanceLost, match="running"):
                await nobody.get_json("/v1/models")

    with_server(test, api_key="other")


def test_v1_in_the_url_is_understood_and_the_first_model_found() -> None:
    async def test(fake: FakeOpenAI, client: OpenAIClient) -> None:
        async with OpenAIClient(fake.url + "/v1/") as same:
            assert (await same.first_model())["id"] == "fake-model"
        with pytest.raises(ProtocolError):
            await client.get_json("/ready")

    with_server(test)


def test_leaving_a_stream_closes_the_connection() -> None:
    async def test(fake: FakeOpenAI, client: OpenAIClient) -> None:
        async def read() -> None:
            async for _ in client.stream("/v1/completions", {"prompt": "HANG"}):
                seen.set()

        seen = asyncio.Event()
        task = asyncio.create_task(read())
        await asyncio.wait_for(seen.wait(), 100)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.wait_for(fake.left.wait(), 100)

    with_server(test)


def test_error_text_of_any_shape_is_shown() -> None:
    from xllm.bench.openai_client import _message_of

    nested = {"error": {"message": "m", "code": 400}}
    assert [_message_of(x) for x in (nested, {"message": "m"}, {"error": "m"}, "m")] == ["m"] * 4
    assert json.dumps(nested)
