"""The commands as processes: xllm serve, and xllm service over xllm engine; timed engines, real HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.model_dirs import write_config
from tests.fakes.small_tokenizers import write_tokenizer_dir
from tests.unit.launch.test_engine_process import ROOT, exists, wait_gone
from xllm.perf.step_time import PROFILES, profile_json

CHAT = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"


def write_model(directory: Path, **changes: int) -> Path:
    return write_tokenizer_dir(write_config(directory, vocab_size=512, **changes), chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


class Command:
    """A running ``xllm`` command and what it has printed so far."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.text = ""

    def read_until(self, pattern: str) -> re.Match[str]:
        """Read lines until one matches; the test's own time-out bounds it."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.text += line
            found = re.search(pattern, line)
            if found:
                return found
        raise AssertionError(f"no line matches {pattern!r}:\n{self.text}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        assert self.popen.stdout is not None
        self.text += self.popen.stdout.read()
        return self.popen.wait(100)


@contextmanager
def xllm(*args: str, **env: str) -> Iterator[Command]:
    popen = subprocess.Popen(
        [sys.executable, "-m", "xllm.cli.main", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Command(popen)
    finally:
        popen.kill()
        popen.wait(100)
        assert popen.stdout is not None
        popen.stdout.close()


def ask(url: str, body: object = None) -> tuple[int, dict[str, object]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def serve(model_dir: Path, *more: str) -> tuple[str, ...]:
    flags = ("--executor", "timed:instant", "--port", "0", "--served-model-name", "m")
    return ("serve", str(model_dir), *flags, *more)


def test_serve_answers_and_ends_on_sigterm_without_leaving_a_process(model_dir: Path) -> None:
    with xllm(*serve(model_dir)) as command:
        url = command.read_until(r"serving m at (http://\S+)")[1]
        status, body = ask(f"{url}/v1/chat/completions", CHAT)
        assert status == 200, body
        assert body["usage"]["completion_tokens"] == 8  # type: ignore[index]
        (engine,) = children(command.popen.pid)
        assert command.end() == 0
        assert not exists(engine)
        assert "Traceback" not in command.text


def test_serve_says_503_when_its_engine_is_dead(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with xllm(*serve(model)) as command:
        url = command.read_until(r"serving m at (http://\S+)")[1]
        (engine,) = children(command.popen.pid)
        (model / "config.json").unlink()  # so that it cannot be started again meanwhile
        os.kill(engine, signal.SIGKILL)
        command.read_until(r"ended with status -9")
        assert ask(f"{url}/health")[0] == 503
        status, body = ask(f"{url}/v1/chat/completions", CHAT)
        assert status == 503, body
        assert command.end() != 0  # a supervisor sees that something was wrong


def test_killing_serve_ends_its_engine(model_dir: Path) -> None:
    with xllm(*serve(model_dir)) as command:
        command.read_until(r"serving m at")
        (engine,) = children(command.popen.pid)
        command.popen.kill()
        wait_gone(engine)


@pytest.mark.parametrize("when", ["loading", "serving"])
def test_ctrl_c_ends_serve_at_any_moment(model_dir: Path, when: str) -> None:
    with xllm(*serve(model_dir)) as command:
        command.read_until(r"engine\.build: runner\.device" if when == "loading" else r"serving m at")
        engines = children(command.popen.pid)
        assert command.end(signal.SIGINT) in (0, 130, -signal.SIGINT)
        for engine in engines:
            wait_gone(engine)
        assert "Traceback" not in command.text


def test_a_configuration_that_cannot_work_is_one_message(model_dir: Path) -> None:
    with xllm(*serve(model_dir, "--executor", "timed:nonsense")) as command:
        assert command.popen.wait(100) not in (0, 1)
        assert command.popen.stdout is not None
        text = command.popen.stdout.read()
        assert "nonsense" in text
        assert "hint:" in text
        assert "Traceback" not in text


def test_a_service_runs_over_an_engine_started_by_hand(model_dir: Path) -> None:
    endpoint = ("--executor", "timed:instant", "--endpoint", "tcp://127.0.0.1:0")
    with xllm("engine", str(model_dir), *endpoint, XLLM_RPC_TOKEN="secret") as engine:
        address = engine.read_until(r"ready at (\S+)")[1]
        flags = ("--engine", address, "--port", "0", "--served-model-name", "m")
        with xllm("service", str(model_dir), *flags, XLLM_RPC_TOKEN="wrong") as stranger:
            assert stranger.popen.wait(100) != 0
        with xllm("service", str(model_dir), *flags, XLLM_RPC_TOKEN="secret") as service:
            url = service.read_until(r"serving m at (http://\S+)")[1]
            status, body = ask(f"{url}/v1/chat/completions", CHAT)
            assert status == 200, body
            assert service.end() == 0
        assert engine.popen.poll() is None  # whoever uses an engine does not own it
        assert engine.end() == 0


@pytest.mark.parametrize("kind", ["hangs", "advances slowly"])
def test_health_follows_progress_and_shutdown_is_bounded(tmp_path: Path, kind: str) -> None:
    # A step of 8 s is longer than the stall time-out of 5 s; each of its forty layers is quicker, by far.
    step_s, stall_s = (1e6, 1) if kind == "hangs" else (8.0, 5)
    model = write_model(tmp_path / "model", num_hidden_layers=40)
    profile = tmp_path / "slow.json"
    profile.write_text(profile_json(replace(PROFILES["instant"], name="slow", overhead_s=step_s)))
    flags = ("--executor", f"timed:{profile}", "--shutdown-timeout", "0")
    with xllm(*serve(model), *flags, "--set", f"api.stall_timeout_s={stall_s}") as command:
        url = command.read_until(r"serving m at (http://\S+)")[1]
        (engine,) = children(command.popen.pid)
        client = threading.Thread(
            target=ask, args=(f"{url}/v1/chat/completions", {**CHAT, "max_tokens": 1}), daemon=True
        )
        client.start()
        num_asked = 0
        if kind == "hangs":
            while ask(f"{url}/health")[0] == 200:
                time.sleep(0.05)
        else:
            while client.is_alive():
                status, body = ask(f"{url}/health")
                # On a starved machine it may be silent for a moment, which is another complaint.
                assert status == 200 or "has not been heard" in str(body["message"]), body
                num_asked += 1
                time.sleep(0.05)
            assert num_asked >= 3
        command.end()
        wait_gone(engine)
        client.join(100)
