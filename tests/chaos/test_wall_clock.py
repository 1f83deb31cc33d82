"""The time of day jumps by days under a running cluster: streams, leases and liveness do not notice."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.command import Command
from tests.fakes.http import ask, events
from tests.fakes.served import until
from tests.fakes.wall_clock import WallClock
from xllm.perf.step_time import PROFILES, profile_json

DAY_S = 86_400.0
LEASE_S = 6.0
PATIENCE_S = 20.0
"""Far less than a day, and more than a busy machine stands still."""
BODY = {
    "model": "demo", "prompt": "north", "max_tokens": 200, "ignore_eos": True, "seed": 1, "stream": True,
    "return_token_ids": True,
}  # fmt: skip


def token_ids(raw: bytes) -> list[int]:
    found = [data for _, data in events(raw)]
    assert found[-1] == "[DONE]"
    return [t for data in found[:-1] for choice in data["choices"] for t in choice.get("token_ids") or ()]


def test_jumps_of_the_time_of_day_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = WallClock(tmp_path)
    profile = json.loads(profile_json(PROFILES["instant"])) | {"name": "slow", "overhead_s": 0.02}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    for name, value in clock.env.items():
        monkeypatch.setenv(name, value)
    flags = ("--executor", f"timed:{tmp_path}/profile.json", "--num-threads", "1", "--port", "0")
    cluster = ("--registry", "tcp://127.0.0.1:0", "--set", f"registry.lease_ttl_s={LEASE_S:g}",
               "--set", f"cluster.suspect_after_s={PATIENCE_S:g}", "--set", f"cluster.lost_after_s={PATIENCE_S:g}")  # fmt: skip
    with Command("serve", "--instances", "2", *flags, *cluster) as command:
        monkeypatch.undo()
        url = command.until(r"serving demo at (http://[\d.:]+)")[1]
        until(lambda: states(url) == ["ready", "ready"])
        calm = ask(f"{url}/v1/completions", BODY).raw
        replies: list[Any] = []
        streams = [
            threading.Thread(target=lambda: replies.append(ask(f"{url}/v1/completions", BODY)))
            for _ in range(4)
        ]
        for stream in streams:
            stream.start()
        created = []
        for shift_s in (DAY_S, -2 * DAY_S, 3 * DAY_S, 0.0):
            time.sleep(0.7)
            clock.jump(shift_s)
            short = {**BODY, "max_tokens": 1, "stream": False}
            created.append(ask(f"{url}/v1/completions", short).json["created"] - time.time() - shift_s)
            assert states(url) == ["ready", "ready"]
        for stream in streams:
            stream.join(120)
        assert all(abs(error_s) < DAY_S / 4 for error_s in created), "the clock did not jump"
        assert len(replies) == 4
        for reply in replies:
            assert token_ids(reply.raw) == token_ids(calm)
        time.sleep(LEASE_S + 1.0)  # longer than a lease
        assert states(url) == ["ready", "ready"]
        assert command.end() == 0
    for word in ("lease of", "not been heard", "connection is cut", "Traceback", "instance engine-"):
        assert word not in command.text, command.text


def states(url: str) -> list[str]:
    return [row["state"] for row in ask(f"{url}/health").json["instances"].values()]
