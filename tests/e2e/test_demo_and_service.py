"""The bundled demo model through the openai client, and ``xllm service`` over engines that run already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.http import ask
from tests.fakes.served import ROOT, Served, until


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with Served("demo", "--dtype", "float32", "--device", "cpu", "--num-threads", "1") as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0, timeout=200) as client:
            yield client


def say(client: openai.OpenAI, *turns: str, **fields: Any) -> str:
    roles = ["user", "assistant"] * len(turns)
    messages: list[Any] = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    answer = client.chat.completions.create(model="demo", messages=messages, temperature=0, **fields)
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content or ""


def test_the_capital_of_france(client: openai.OpenAI) -> None:
    assert "Paris" in say(client, "What is the capital of France?")


def test_a_follow_up_uses_the_conversation(client: openai.OpenAI) -> None:
    first = say(client, "What is the capital of Japan?")
    assert "Tokyo" in first
    second = say(client, "What is the capital of Japan?", first, "And of Italy?")
    assert "Rome" in second


def test_a_tool_is_offered_through_the_template_and_called(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools: list[Any] = [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Get the weather", "parameters": parameters},
        }
    ]
    text = say(client, "What is the weather in Paris?", tools=tools)
    call = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
    assert (call["name"], list(call["arguments"])) == ("get_weather", ["city"])


def test_a_service_over_two_running_engines(tiny_model_dir: Path) -> None:
    said = {
        "model": str(tiny_model_dir),
        "executor": "timed:instant",
        "endpoint": "127.0.0.1:0",
        "rpc_token": "s",
    }
    engines = [
        subprocess.Popen(
            [sys.executable, "-m", "xllm.cli.main", "engine", *flags(said)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    try:
        addresses = [address_of(engine) for engine in engines]
        more = [text for address in addresses for text in ("--engine", address)]
        with Served(tiny_model_dir, "--rpc-token", "s", *more, command="service") as served:
            body = {"prompt": "x", "max_tokens": 3}
            assert [ask(f"{served.url}/v1/completions", body).status for _ in range(6)] == [200] * 6
            found = ask(f"{served.url}/health").json["instances"]
            assert len(found) == 2
            until(lambda: all(i["step"] > 0 for i in ask(f"{served.url}/health").json["instances"].values()))
            engines[0].kill()
            until(lambda: ask(f"{served.url}/health").json["instances"] != found and count_ready(served) == 1)
            assert [ask(f"{served.url}/v1/completions", body).status for _ in range(4)] == [200] * 4
    finally:
        for engine in engines:
            engine.kill()
            engine.wait(60)
            assert engine.stdout is not None
            engine.stdout.close()


def count_ready(served: Served) -> int:
    return sum(i["state"] == "ready" for i in ask(f"{served.url}/health").json["instances"].values())


def flags(said: dict[str, str]) -> list[str]:
    return [text for key, value in said.items() for text in (f"--{key.replace('_', '-')}", value)]


def address_of(engine: subprocess.Popen[str]) -> str:
    assert engine.stdout is not None
    for line in engine.stdout:
        if "ready at " in line:
            return line.split("ready at ")[1].strip()
    raise AssertionError("the engine ended")
