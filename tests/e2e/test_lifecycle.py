"""A server's beginning, bad days and end: keys, engine death, engine hang, SIGTERM."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.fakes.http import ask, events
from tests.fakes.model_dirs import write_config
from tests.fakes.served import Served, until
from tests.fakes.small_tokenizers import write_tokenizer_dir
from xllm.perf.step_time import PROFILES, profile_json


def profile(tmp_path: Path, step_s: float) -> str:
    path = tmp_path / f"step-{step_s}.json"
    path.write_text(profile_json(replace(PROFILES["instant"], name="slow", overhead_s=step_s)))
    return f"timed:{path}"


def start_stream(served: Served, body: dict[str, object]) -> http.client.HTTPConnection:
    conn = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=200)
    conn.request("POST", "/v1/completions", json.dumps(body | {"stream": True}))
    return conn


LONG = {"prompt": "x", "max_tokens": 1000, "ignore_eos": True}


def tokens(raw: bytes) -> tuple[list[int], str | None]:
    """Ids of a stream's only choice, and how it ended."""
    found, end = [], None
    for _, event in events(raw)[:-1]:
        (choice,) = event["choices"]
        found += choice["token_ids"] or []
        end = choice["finish_reason"] or end
    return found, end


def test_an_engine_that_is_killed_is_started_again_and_its_streams_go_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    flags = ("--executor", profile(tmp_path, 0.01), "--set", "api.failover_timeout_s=100")
    with Served(tiny_model_dir, *flags) as served:
        body = {**LONG, "max_tokens": 200, "seed": 3, "return_token_ids": True}
        calm = ask(f"{served.url}/v1/completions", {**body, "stream": True}).raw
        pid = served.engine_pid
        conn = start_stream(served, body)
        response = conn.getresponse()
        got = response.readline()
        os.kill(pid, signal.SIGKILL)
        got += response.read()
        conn.close()
        assert got.endswith(b"data: [DONE]\n\n") and tokens(got) == tokens(calm)
        assert len(tokens(got)[0]) == 200
        until(lambda: "is started again" in "".join(served.log) and ask(f"{served.url}/ready").status == 200)
        assert served.engine_pid != pid
        assert ask(f"{served.url}/health").status == 200
        assert served.stop() == 0
        assert "Traceback" not in "".join(served.log)


def test_where_an_engine_is_not_back_in_time_its_stream_ends_with_an_error(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    flags = ("--executor", profile(tmp_path, 0.01), "--set", "api.failover_timeout_s=0.01")
    with Served(tiny_model_dir, *flags) as served:
        conn = start_stream(served, LONG)
        response = conn.getresponse()
        assert response.status == 200
        assert response.readline()
        os.kill(served.engine_pid, signal.SIGKILL)
        got = response.read()
        blocks = [block for block in got.decode().split("\n\n") if block]
        last = json.loads(blocks[-1].split("data: ", 1)[1])
        assert last["error"]["code"] == 503, blocks[-1]
        assert "[DONE]" not in got.decode() and '"finish_reason":"' not in got.decode()
        conn.close()
        until(lambda: ask(f"{served.url}/ready").status == 200)
        assert ask(f"{served.url}/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200


def test_an_engine_that_was_told_to_leave_stays_away(tiny_model_dir: Path) -> None:
    with Served(tiny_model_dir, "--executor", "timed:instant") as served:
        os.kill(served.engine_pid, signal.SIGTERM)
        until(lambda: ask(f"{served.url}/health").status == 503)
        until(lambda: "it is not started again" in "".join(served.log))
        assert ask(f"{served.url}/ready").status == 503
        refused = ask(f"{served.url}/v1/completions", {"prompt": "x"})
        assert (refused.status, refused.json["error"]["type"]) == (503, "ServiceUnavailableError")
        assert served.metric("engine_healthy") == 0.0
        assert served.stop() == 70


def test_a_forward_that_stands_still_turns_health_and_one_that_advances_does_not(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    # Two layers per step of 200 s: no counter moves for 100 s.
    with Served(tiny_model_dir, "--executor", profile(tmp_path, 200.0), "--shutdown-timeout", "0") as served:
        assert ask(f"{served.url}/health").status == 200
        began = time.monotonic()
        conn = start_stream(served, LONG)
        until(lambda: "advanced" in ask(f"{served.url}/health").json["message"])
        waited = time.monotonic() - began
        assert ask(f"{served.url}/health").status == 503
        conn.close()
    assert waited >= 4.0, "an engine that just began a step was called dead"
    # Forty layers per step of 8 s: longer than the patience of 5 s, but a counter moves every 0.2 s.
    deep = write_tokenizer_dir(write_config(tmp_path / "deep", vocab_size=512, num_hidden_layers=40))
    with Served(deep, "--executor", profile(tmp_path, 8.0), "--shutdown-timeout", "0") as served:
        conn = start_stream(served, LONG)
        deadline = time.monotonic() + 9.0
        while time.monotonic() < deadline:
            health = ask(f"{served.url}/health")
            # On a starved machine it may be silent for a moment, which is another complaint.
            assert health.status == 200 or "has not been heard" in health.json["message"], health.json
            time.sleep(0.1)
        conn.close()


def test_a_frozen_engine_process_turns_health_and_comes_back(tiny_model_dir: Path) -> None:
    with Served(tiny_model_dir, "--executor", "timed:instant") as served:
        pid = served.engine_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: ask(f"{served.url}/health").status == 503)
        finally:
            os.kill(pid, signal.SIGCONT)
        until(lambda: ask(f"{served.url}/health").status == 200)
        assert ask(f"{served.url}/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200


def test_sigterm_drains(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Served(tiny_model_dir, "--executor", profile(tmp_path, 0.1), "--shutdown-timeout", "100") as served:
        conn = start_stream(served, LONG | {"max_tokens": 60})
        response = conn.getresponse()
        assert response.readline()
        served.process.send_signal(signal.SIGTERM)
        until(lambda: ask(f"{served.url}/ready").status == 503)
        assert ask(f"{served.url}/v1/completions", {"prompt": "x"}).status == 503
        assert response.read().endswith(b"data: [DONE]\n\n")
        conn.close()
        assert served.process.wait(100) == 0


def test_sigterm_ends_what_takes_too_long(tiny_model_dir: Path, tmp_path: Path) -> None:
    with Served(tiny_model_dir, "--executor", profile(tmp_path, 0.05), "--shutdown-timeout", "0.2") as served:
        conn = start_stream(served, LONG)
        response = conn.getresponse()
        assert response.readline()
        engine_pid = served.engine_pid
        served.process.send_signal(signal.SIGTERM)
        assert b'"code":503' in response.read()
        conn.close()
        assert served.process.wait(100) == 0
        until(lambda: not Path(f"/proc/{engine_pid}").exists())


def test_the_queue_has_an_end(tiny_model_dir: Path, tmp_path: Path) -> None:
    flags = ["--executor", profile(tmp_path, 0.2), "--max-num-seqs", "1", "--max-num-queued-reqs", "2"]
    with Served(tiny_model_dir, *flags, "--shutdown-timeout", "0") as served:
        conns = [start_stream(served, LONG) for _ in range(3)]
        statuses: list[int] = []
        retry: list[str | None] = []

        def probe() -> None:
            found = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=100)
            found.request("POST", "/v1/completions", json.dumps(LONG | {"stream": True}))
            response = found.getresponse()
            statuses.append(response.status)
            retry.append(response.getheader("Retry-After"))
            found.close()

        probe()
        until(lambda: probe() is None and 429 in statuses)
        assert retry[statuses.index(429)] is not None
        assert ask(f"{served.url}/health").status == 200
        for conn in conns:
            conn.close()


def test_keys_guard_the_real_server(tiny_model_dir: Path) -> None:
    flags = ["--executor", "timed:instant", "--api-key", "key-qqq", "--admin-api-key", "admin-zzz"]
    with Served(tiny_model_dir, *flags) as served:
        assert ask(f"{served.url}/v1/models").status == 401
        assert ask(f"{served.url}/v1/models", headers={"Authorization": "Bearer key-qqq"}).status == 200
        assert ask(f"{served.url}/debug/waits", headers={"Authorization": "Bearer key-qqq"}).status == 401
        assert ask(f"{served.url}/debug/waits", headers={"Authorization": "Bearer admin-zzz"}).status == 200
        assert "qqq" not in "".join(served.log) and "zzz" not in "".join(served.log)


def test_a_bad_model_is_said_at_once(tmp_path: Path) -> None:
    try:
        with Served(tmp_path):
            raise AssertionError("it started")
    except AssertionError as exc:
        assert "config.json" in str(exc), exc


def test_many_deadlines_that_are_due_at_once_harm_nobody(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Delays that round to zero: uvloop then gives a handle that does not know when it is due."""
    with Served(tiny_model_dir, "--executor", profile(tmp_path, 0.002)) as served:
        for round_number in range(15):
            bodies = [
                LONG | {"timeout_s": 0.0002 * (i + round_number + 1), "stream": True} for i in range(10)
            ]
            conns = [start_stream(served, body) for body in bodies]
            for conn in conns:
                response = conn.getresponse()
                text = response.read()
                assert b'"code":504' in text, text
                conn.close()
        assert ask(f"{served.url}/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200
