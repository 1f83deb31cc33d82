"""The real openai client against the edge over a fake backend: shapes, text, usage, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.fakes.backend import ANSWER, FakeBackend
from tests.fakes.edge_server import EdgeServer
from tests.fakes.http import ask, events

USER = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server: EdgeServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("tokens_per_step", [1, 3, 100])
def test_chat_text_is_the_same_whole_and_streamed(tokens_per_step: int) -> None:
    backend = FakeBackend(tokens_per_step=tokens_per_step)
    with EdgeServer(backend) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        whole = client.chat.completions.create(model="fake", messages=USER)
        assert whole.choices[0].message.content == ANSWER
        assert whole.choices[0].finish_reason == "stop"
        chunks = list(client.chat.completions.create(model="fake", messages=USER, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWER
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
        assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in chunks)


def test_usage_and_cached_tokens(client: openai.OpenAI, backend: FakeBackend) -> None:
    whole = client.chat.completions.create(model="fake", messages=USER, n=2, max_tokens=3)
    assert whole.usage is not None
    prompt = backend.requests[0].num_prompt_tokens
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, 6)
    assert whole.usage.total_tokens == prompt + 6
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 2


def test_stream_usage_comes_last_and_only_when_asked(client: openai.OpenAI) -> None:
    asked = client.chat.completions.create(
        model="fake", messages=USER, stream=True, max_tokens=3, stream_options={"include_usage": True}
    )
    chunks = list(asked)
    assert [bool(c.choices) for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    plain = client.chat.completions.create(model="fake", messages=USER, stream=True, max_tokens=3)
    assert all(c.usage is None and c.choices for c in plain)


def test_running_usage_counts_up(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model="fake",
            messages=USER,
            stream=True,
            max_tokens=4,
            stream_options=options,  # type: ignore[arg-type]
        )
    )
    counts = [c.usage.completion_tokens for c in chunks if c.usage]
    assert counts == [0, 1, 2, 3, 4, 4]


def test_chat_logprobs(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="fake", messages=USER, max_tokens=3, logprobs=True, top_logprobs=2
    )
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(entry.token for entry in logprobs.content) == whole.choices[0].message.content
    assert all(bytes(entry.bytes or ()).decode() == entry.token for entry in logprobs.content)
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2, 2, 2]
    chunks = client.chat.completions.create(
        model="fake", messages=USER, max_tokens=3, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content or ()]
    assert streamed == logprobs.content


@pytest.mark.parametrize("tokens_per_step", [1, 4, 100])
@pytest.mark.parametrize(
    ("stop", "text"), [(" is Par", "The capital of France"), (["zzz", "🦊", "好"], None)]
)
def test_stop_strings_cut_exactly_and_abort(
    stop: str | list[str], text: str | None, tokens_per_step: int
) -> None:
    backend = FakeBackend(tokens_per_step=tokens_per_step)
    want = text or ANSWER[: ANSWER.index("好")]
    with EdgeServer(backend) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
        whole = client.chat.completions.create(model="fake", messages=USER, stop=stop)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (want, "stop")
        assert whole.choices[0].stop_reason in stop  # type: ignore[attr-defined]
        chunks = list(client.chat.completions.create(model="fake", messages=USER, stop=stop, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == want
    if tokens_per_step == 1:
        assert [abort[1:] for abort in backend.aborts] == [(0, "stop")] * 2


def test_stop_text_can_be_kept(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="fake", messages=USER, stop=" is", extra_body={"include_stop_str_in_output": True}
    )
    assert whole.choices[0].message.content == "The capital of France is"


def test_one_choice_stopped_by_its_text_leaves_the_other(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="fake", messages=USER, n=3, stop="Paris")
    assert [choice.message.content for choice in whole.choices] == ["The capital of France is "] * 3
    assert [choice.index for choice in whole.choices] == [0, 1, 2]


def test_stop_token_ids_hide_the_token_and_say_which(client: openai.OpenAI, backend: FakeBackend) -> None:
    token = backend.answer_ids[4]
    whole = client.chat.completions.create(
        model="fake", messages=USER, extra_body={"stop_token_ids": [token], "return_token_ids": True}
    )
    choice = whole.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.stop_reason == token  # type: ignore[attr-defined]
    assert choice.token_ids == list(backend.answer_ids[:5])  # type: ignore[attr-defined]
    assert choice.message.content == backend.text.tokenizer.decode(backend.answer_ids[:4])


def test_completions_batch_echo_logprobs(client: openai.OpenAI, backend: FakeBackend) -> None:
    whole = client.completions.create(
        model="fake",
        prompt=["Hello world", "Two  spaces."],
        echo=True,
        logprobs=2,
        max_tokens=4,
        n=2,
        extra_body={"add_special_tokens": False},
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    answer = backend.text.tokenizer.decode(backend.answer_ids[:4])
    texts = [choice.text for choice in whole.choices]
    assert texts == [p + answer for p in ("Hello world", "Two  spaces.") for _ in range(2)]
    for choice in (whole.choices[0], whole.choices[2]):
        assert choice.logprobs is not None
        tokens, offsets = choice.logprobs.tokens or [], choice.logprobs.text_offset or []
        assert "".join(tokens) == choice.text
        assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
        assert (choice.logprobs.token_logprobs or [0])[0] is None


def test_completions_take_token_ids(client: openai.OpenAI, backend: FakeBackend) -> None:
    client.completions.create(model="fake", prompt=[5, 6, 7], max_tokens=1)
    client.completions.create(model="fake", prompt=[[5], [6, 7]], max_tokens=1)
    assert [r.prompt_token_ids for r in backend.requests] == [(5, 6, 7), (5,), (6, 7)]


def test_echo_without_output_scores_the_prompt(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="fake",
        prompt="Hello world",
        echo=True,
        logprobs=0,
        max_tokens=0,
        extra_body={"add_special_tokens": False},
    )
    choice = whole.choices[0]
    assert choice.text == "Hello world"
    assert choice.logprobs is not None and "".join(choice.logprobs.tokens or ()) == "Hello world"
    assert whole.usage is not None and whole.usage.completion_tokens == 0


def test_tools_reach_the_template(client: openai.OpenAI, backend: FakeBackend) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    client.chat.completions.create(model="fake", messages=USER, tools=tools, max_tokens=1)  # type: ignore[arg-type]
    client.chat.completions.create(
        model="fake",
        messages=USER,
        tools=tools,
        tool_choice="none",
        max_tokens=1,  # type: ignore[arg-type]
    )
    texts = [backend.text.tokenizer.decode(r.prompt_token_ids, False) for r in backend.requests]
    assert "<tool weather>" in texts[0] and "<tool weather>" not in texts[1]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=USER, tools=tools, tool_choice="required")  # type: ignore[arg-type]
    assert caught.value.param == "tool_choice"


def test_event_ids_name_request_choice_and_token(server: EdgeServer) -> None:
    body = {"messages": USER, "stream": True, "max_tokens": 3, "n": 2, "request_id": "me"}
    got = events(ask(f"{server.url}/v1/chat/completions", body).raw)
    assert got[-1] == (None, "[DONE]")
    ids = [event_id for event_id, _ in got[:-1]]
    assert ids[:2] == ["chatcmpl-me:0:0", "chatcmpl-me:1:0"]
    assert [i for i in ids if i and ":1:" in i] == [f"chatcmpl-me:1:{k}" for k in range(4)]


def test_async_client_many_streams(server: EdgeServer) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="fake", messages=USER, stream=True)  # type: ignore[arg-type]
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            return await asyncio.gather(*(one(client) for _ in range(40)))

    assert asyncio.run(run()) == [ANSWER] * 40


def test_wrong_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=USER)
    assert caught.value.body == {  # the SDK unwraps "error"
        "message": "model 'nope' is not served (hint: served: fake, alias/of-it)",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_too_long_prompt_is_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context is 256 tokens"):
        client.completions.create(model="fake", prompt=[5] * 256)
    with pytest.raises(openai.BadRequestError, match="at most 6 output tokens"):
        client.completions.create(model="fake", prompt=[5] * 250, max_tokens=7)
    assert client.completions.create(model="fake", prompt=[5] * 250, max_tokens=6).choices[0].text


def test_queue_full_is_429_with_retry_after() -> None:
    backend = FakeBackend(max_running=0)
    with EdgeServer(backend) as server:
        reply = ask(f"{server.url}/v1/completions", {"prompt": "x"})
        assert (reply.status, {k.lower(): v for k, v in reply.headers.items()}["retry-after"]) == (429, "2")
        assert reply.json["error"]["type"] == "RateLimitError"


def test_dead_engine_is_503_before_and_an_error_event_within_a_stream() -> None:
    backend = FakeBackend(fail_after=2)
    with (
        EdgeServer(backend) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as c,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            c.chat.completions.create(model="fake", messages=USER)
        assert caught.value.status_code == 503
        with pytest.raises(openai.APIError, match="the engine died"):
            list(c.chat.completions.create(model="fake", messages=USER, stream=True))
        got = events(ask(f"{server.url}/v1/chat/completions", {"messages": USER, "stream": True}).raw)
        assert got[-1][1]["error"]["code"] == 503
        assert all(data != "[DONE]" for _, data in got)
        assert not any(data["choices"][0]["finish_reason"] for _, data in got[:-1])
        backend.is_up = False
        assert ask(f"{server.url}/health").status == 503
        assert ask(f"{server.url}/ready").status == 503
        assert ask(f"{server.url}/v1/completions", {"prompt": "x"}).status == 503


def test_one_refused_prompt_of_a_batch_takes_the_others_back() -> None:
    backend = FakeBackend(max_running=2, delay_s=0.01)
    with EdgeServer(backend) as server:
        reply = ask(f"{server.url}/v1/completions", {"prompt": ["a", "b", "c"]})
        assert reply.status == 429
        assert {request_id[-1] for request_id, _, _ in backend.aborts} >= {"0", "1"}
    assert backend.running == {}
