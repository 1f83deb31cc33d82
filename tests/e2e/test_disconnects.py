"""200 concurrent streams, half of the clients killed in the middle: nothing leaks and the others are exact."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from tests.fakes.http import ask
from tests.fakes.served import Served, until

NUM_STREAMS = 200
NUM_TOKENS = 60


@pytest.fixture(scope="module")
def crowded(tiny_model_dir: Path) -> object:
    flags = ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--max-model-len", "256"]
    more = ["--max-num-seqs", "64", "--served-model-name", "tiny", "--num-gpu-blocks-override", "700"]
    with Served(tiny_model_dir, *flags, *more) as served:
        yield served


def body_of(index: int) -> dict[str, object]:
    prompt = [(index * 7 + i * i) % 390 for i in range(20 + index % 30)]
    return {
        "model": "tiny",
        "prompt": prompt,
        "seed": index,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }


async def stream(url: str, index: int, *, leave_after: int | None) -> str | None:
    """The whole text, or None for a client that leaves after some events."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = body_of(index) | {"stream": True}
    if leave_after is not None:
        body["max_tokens"] = 200  # long enough that even a client that reads late leaves before the end
    raw = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
    text, num_events, is_done = "", 0, False
    try:
        while not is_done:
            line = await reader.readline()
            assert line, f"stream {index} broke off: {text!r}"
            if line.startswith(b"HTTP/1.1"):
                assert b" 200 " in line, line
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: "):
                data = json.loads(line[6:])
                assert "choices" in data, data
                text += data["choices"][0]["text"]
                num_events += 1
                if num_events == leave_after:
                    writer.transport.abort()
                    return None
    finally:
        writer.close()
    return text


def test_half_of_the_clients_leave(crowded: Served) -> None:
    async def run() -> list[str | None]:
        leave = [3 + index % 17 if index % 2 else None for index in range(NUM_STREAMS)]
        jobs = [stream(crowded.url, index, leave_after=leave[index]) for index in range(NUM_STREAMS)]
        return await asyncio.wait_for(asyncio.gather(*jobs), 240)

    texts = asyncio.run(run())
    assert [text is None for text in texts] == [bool(index % 2) for index in range(NUM_STREAMS)]
    asked_alone = (0, 2, 64, 100, 198)
    for index in asked_alone:
        alone = ask(f"{crowded.url}/v1/completions", body_of(index)).json["choices"][0]["text"]
        assert texts[index] == alone

    def nothing_is_held() -> bool:
        blocks = crowded.blocks()
        held = blocks["used"] + blocks["leased"] + blocks["pinned"]
        is_idle = crowded.metric("num_requests_running") + crowded.metric("num_requests_waiting") == 0
        return held == 0 and is_idle and blocks["free"] + blocks["cached"] == 700

    until(nothing_is_held)
    waits = ask(f"{crowded.url}/debug/waits").json["waits"]
    assert not [wait for wait in waits if wait["owner"].startswith("request")], waits
    # Every call ended once, as finished or as left. A client that is starved can still leave an answer that had
    # been sent whole, so not all of the hundred need count as gone.
    gone, finished = (
        crowded.metric("client_disconnects_total"),
        crowded.metric("e2e_request_latency_seconds_count"),
    )
    assert gone + finished == NUM_STREAMS + len(asked_alone)
    assert 0 < gone <= NUM_STREAMS / 2
    assert not re.search("Traceback|never retrieved", "".join(crowded.log))
    assert crowded.stop() == 0
    assert not re.search("was destroyed|Traceback", "".join(crowded.log))
