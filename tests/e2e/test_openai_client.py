"""The real openai client against a real ``xllm serve`` with a model that computes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.http import ask, events
from tests.fakes.served import Served

USER: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=200) as client:
        yield client


def text_of(chunks: Any, index: int = 0) -> str:
    return "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == index
    )


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_greedy_text_is_the_models_own(client: openai.OpenAI, tiny_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [5, 60, 100, 33, 250, 7, 7, 19]
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    want = ids[0, len(prompt) :].tolist()
    got = client.completions.create(
        model="tiny",
        prompt=prompt,
        temperature=0,
        max_tokens=12,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    assert got.choices[0].token_ids == want  # type: ignore[attr-defined]


def test_streamed_is_whole(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 40, "seed": 4, "n": 3}
    whole = client.chat.completions.create(**fields)
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    for choice in whole.choices:
        assert text_of(chunks, choice.index) == choice.message.content
    assert len({choice.message.content for choice in whole.choices}) == 3, "choices have their own noise"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_seed_repeats_and_another_differs(client: openai.OpenAI) -> None:
    def ask_with(seed: int | None) -> str | None:
        answer = client.chat.completions.create(model="tiny", messages=USER, max_tokens=24, seed=seed)
        return answer.choices[0].message.content

    assert ask_with(11) == ask_with(11) != ask_with(12)
    assert ask_with(None) != ask_with(None)


def test_async_streams_at_once(served: Served) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model="tiny", messages=USER, seed=seed, max_tokens=24, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def run() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", timeout=200) as client:
            together = await asyncio.gather(*(one(client, seed) for seed in range(12)))
            alone = [await one(client, seed) for seed in range(12)]
            return together, alone

    together, alone = asyncio.run(run())
    assert together == alone


def test_logprobs_are_those_of_the_chosen_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 5
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0
        assert bytes(entry.bytes or ()) and entry.top_logprobs[0].bytes == entry.bytes


def test_stop_string_is_cut_and_the_engine_is_freed(client: openai.OpenAI, served: Served) -> None:
    fields: dict[str, Any] = {"model": "tiny", "messages": USER, "temperature": 0, "max_tokens": 200}
    whole = client.chat.completions.create(**fields).choices[0].message.content or ""
    stop = whole[20:23]
    cut = client.chat.completions.create(**fields, stop=stop)
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert (cut.choices[0].finish_reason, cut.choices[0].stop_reason) == ("stop", stop)  # type: ignore[attr-defined]
    assert cut.usage is not None and cut.usage.completion_tokens < 200


def test_cached_tokens(client: openai.OpenAI) -> None:
    prompt = [(11 * i) % 380 for i in range(90)]
    counts = []
    for _ in range(2):
        usage = client.completions.create(model="tiny", prompt=prompt, max_tokens=2).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        counts.append(usage.prompt_tokens_details.cached_tokens)
    assert counts == [0, 80]
    salted = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=2, extra_body={"cache_salt": "mine"}
    ).usage
    assert salted is not None and salted.prompt_tokens_details is not None
    assert salted.prompt_tokens_details.cached_tokens == 0


def test_echo_scores_the_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="Hello world", echo=True, logprobs=1, max_tokens=1
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None and all(v < 0 for v in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens or ())[: len("Hello world")] == "Hello world"


def test_tools_go_through_the_template(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="tiny", messages=USER, max_tokens=1)
    tooled = client.chat.completions.create(model="tiny", messages=USER, max_tokens=1, tools=TOOLS)
    assert plain.usage is not None and tooled.usage is not None
    assert tooled.usage.prompt_tokens > plain.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=USER, tools=TOOLS, tool_choice="required")
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"temperature": 200}, openai.BadRequestError),
        ({"max_tokens": 10_000}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"response_format": {"type": "json_object"}}, openai.BadRequestError),
        ({"extra_body": {"allowed_token_ids": [5000]}}, openai.BadRequestError),
    ],
)
def test_errors(client: openai.OpenAI, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        client.chat.completions.create(**{"model": "tiny", "messages": USER, **fields})


def test_sampling_limits_act_in_the_engine(client: openai.OpenAI) -> None:
    allowed = [40, 41, 42]
    answer = client.completions.create(
        model="tiny",
        prompt="Hello",
        max_tokens=20,
        seed=1,
        extra_body={"allowed_token_ids": allowed, "return_token_ids": True, "ignore_eos": True},
    )
    ids = answer.choices[0].token_ids  # type: ignore[attr-defined]
    assert len(ids) == 20 and set(ids) <= set(allowed) and len(set(ids)) > 1
    biased = client.completions.create(
        model="tiny",
        prompt="Hello",
        max_tokens=5,
        logit_bias={"77": 100},
        extra_body={"return_token_ids": True},
    )
    assert biased.choices[0].token_ids == [77] * 5  # type: ignore[attr-defined]


def test_a_deadline_is_a_504_and_an_error_event(served: Served) -> None:
    body = {"prompt": "x", "max_tokens": 250, "ignore_eos": True, "timeout_s": 0.01}
    reply = ask(f"{served.url}/v1/completions", body)
    assert (reply.status, reply.json["error"]["type"]) == (504, "DeadlineExceededError")
    got = events(ask(f"{served.url}/v1/completions", body | {"stream": True}).raw)
    assert got[-1][1]["error"]["code"] == 504


def test_debug_says_what_happened_to_a_request(served: Served) -> None:
    body = {"prompt": "Hello", "max_tokens": 3, "request_id": "explain-me"}
    assert ask(f"{served.url}/v1/completions", body).status == 200
    rows = ask(f"{served.url}/debug/requests/cmpl-explain-me").json["decisions"]
    sources = {row["source"] for row in rows}
    assert "service" in sources and len(sources) == 2
    assert [row["event"] for row in rows if row["source"] == "service"] == [
        "routed",
        "scored",
        "accepted",
        "ended",
    ]
    waits = ask(f"{served.url}/debug/waits").json["waits"]
    assert all({"source", "owner", "reason", "age_s", "remaining_s"} <= set(wait) for wait in waits)


def test_metrics_count_what_was_done(served: Served, client: openai.OpenAI) -> None:
    before = served.metric("request_success_total", finished_reason="length")
    client.completions.create(
        model="tiny", prompt="Hello", max_tokens=3, n=2, extra_body={"ignore_eos": True}
    )
    assert served.metric("request_success_total", finished_reason="length") == before + 2
    assert served.metric("engine_healthy") == 1.0
    assert served.metric("time_to_first_token_seconds_count") > 0


def test_tokenize_and_back(served: Served) -> None:
    found = ask(f"{served.url}/tokenize", {"prompt": "Grüße 你好", "return_token_strs": True}).json
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert ask(f"{served.url}/detokenize", {"tokens": found["tokens"]}).json == {"prompt": "Grüße 你好"}
    chat = ask(f"{served.url}/tokenize", {"messages": USER}).json
    text = ask(f"{served.url}/detokenize", {"tokens": chat["tokens"]}).json["prompt"]
    assert text.endswith("<|im_start|>assistant\n")
