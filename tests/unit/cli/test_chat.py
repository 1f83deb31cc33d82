from __future__ import annotations

import argparse
import asyncio
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.fakes.openai_server import WORDS, FakeOpenAI, running, running_in_thread
from xllm.bench.openai_client import OpenAIClient
from xllm.cli import chat
from xllm.cli.chat import Chat, Figures
from xllm.errors import InstanceError

ANSWER = "".join(WORDS)


def run_piped(fake: FakeOpenAI, text: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    return chat.run(parser.parse_args(["--url", fake.url + "/v1", *flags]))


def test_a_pipe_gives_one_answer_per_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_in_thread(FakeOpenAI()) as fake:
        flags = ["--system", "Be brief.", "--temperature", "0", "--stop", "X", "--api-key", "k"]
        status = run_piped(fake, "one\n\n  two  \n", monkeypatch, *flags)
    assert status == 0
    out, err = capsys.readouterr()
    assert out == f"{ANSWER}\n{ANSWER}\n"
    assert err.count("3 of 10 prompt tokens cached") == 2 and "5 tokens" in err and "tok/s" in err
    first, second = fake.bodies
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
    ]
    assert second["messages"][2:] == [
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "two"},
    ]
    assert first["temperature"] == 0.0 and first["stop"] == ["X"] and first["model"] == "fake-model"
    assert "top_p" not in first and "max_tokens" not in first


def test_commands_change_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "one",
        "/reset",
        "two",
        "/system New role",
        "three",
        "/system",
        "four",
        "/nonsense",
        "/help",
        "/exit",
        "no",
    ]
    with running_in_thread(FakeOpenAI()) as fake:
        assert run_piped(fake, "\n".join(lines), monkeypatch, "--model", "m", "--no-stats") == 0
    sent = [[m["content"] for m in body["messages"]] for body in fake.bodies]
    assert sent == [["one"], ["two"], ["New role", "three"], ["four"]]
    err = capsys.readouterr().err
    assert "unknown command /nonsense" in err and "/reset" in err and "tok/s" not in err


def test_a_failed_line_is_reported_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_in_thread(FakeOpenAI()) as fake:
        assert run_piped(fake, "FAIL-STATUS\nhello\n", monkeypatch) == 1
    out, err = capsys.readouterr()
    assert "you asked for it" in err and ANSWER in out
    assert [m["content"] for m in fake.bodies[1]["messages"]] == ["hello"]


def test_what_was_said_before_a_failure_stays_in_the_history() -> None:
    async def main() -> None:
        async with running(FakeOpenAI()) as fake, OpenAIClient(fake.url) as client:
            talk = Chat(client, "m")
            out = io.StringIO()
            with pytest.raises(InstanceError, match="engine died"):
                await talk.ask("FAIL-STREAM", out)
            assert out.getvalue() == "Paris"
            assert [m["content"] for m in talk.messages] == ["FAIL-STREAM", "Paris"]

    asyncio.run(main())


def test_figures_leave_out_what_is_not_known() -> None:
    assert Figures().line() == "0 tokens"
    line = Figures(11, 20, 16, first_s=0.5, last_s=2.5, finish_reason="length").line()
    assert (
        line == "5.0 tok/s · 11 tokens · first after 0.50 s · 16 of 20 prompt tokens cached · ended by length"
    )


def read_until(terminal: int, wanted: str, deadline_s: float = 100.0) -> str:
    seen, end = b"", time.monotonic() + deadline_s
    while wanted.encode() not in seen:
        assert time.monotonic() < end, f"no {wanted!r} in {seen!r}"
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)
    return seen.decode()


def test_ctrl_c_on_a_terminal_stops_the_answer_and_the_request() -> None:
    ours, theirs = pty.openpty()
    with running_in_thread(FakeOpenAI()) as fake:
        code = "import sys; from xllm.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "chat", "--url", fake.url]
        process: subprocess.Popen[Any] = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
        try:
            read_until(ours, "/help lists the commands")
            os.write(ours, b"HANG\n")
            read_until(ours, "Paris")
            process.send_signal(signal.SIGINT)
            read_until(ours, "[stopped]")
            end = time.monotonic() + 90
            while not fake.num_left:
                assert time.monotonic() < end, "the server never heard of the cancellation"
                time.sleep(0.01)
            os.write(ours, b"and now?\n")
            read_until(ours, "prompt tokens cached")
            assert [m["content"] for m in fake.bodies[1]["messages"]] == ["HANG", "Paris", "and now?"]
            os.write(ours, b"/exit\n")
            assert process.wait(100) == 0
        finally:
            process.kill()
            process.wait(100)
            os.close(ours)
            os.close(theirs)
