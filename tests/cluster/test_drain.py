"""Drains by migration with real processes: an engine that is drained or told to end hands its streams over."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.requests import Answer, StreamBooks
from tests.cluster.test_local_cluster import Cluster
from tests.fakes.command import Command
from tests.fakes.http import ask, events
from tests.fakes.served import until
from xllm.config.cluster import RegistryConfig
from xllm.launch.cluster_admin import DrainProgress, drain_instance
from xllm.perf.step_time import PROFILES

BASE = {"model": "demo", "prompt": "what goes on elsewhere", "max_tokens": 160, "ignore_eos": True,
        "return_token_ids": True, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
BODIES: list[dict[str, Any]] = [
    {**BASE, "temperature": 0.0, "seed": 4},
    {**BASE, "seed": 5},
    {**BASE, "seed": 6, "n": 2, "frequency_penalty": 0.5},
    {**BASE, "seed": 7, "offline": True},
    {**BASE, "seed": 8, "logprobs": 1},
    {**BASE, "seed": 9, "offline": True, "n": 2},
    {**BASE, "seed": 10, "prompt": "another"},
    {**BASE, "seed": 11},
    {**BASE, "seed": 12},
]


class Streams:
    """Every body asked at once; ``answers`` are whole once ``join`` has returned."""

    def __init__(self, cluster: Cluster) -> None:
        self.answers: list[Answer | str] = ["" for _ in BODIES]
        self._url = f"{cluster.url}/v1/completions"
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(len(BODIES))]
        for thread in self._threads:
            thread.start()

    def join(self) -> list[Answer | str]:
        for thread in self._threads:
            thread.join(120)
        return self.answers

    def _read(self, number: int) -> None:
        reply = ask(self._url, BODIES[number])
        if reply.status != 200:
            self.answers[number] = f"{reply.status} {reply.raw[:300]!r}"
            return
        books = StreamBooks(BODIES[number].get("n", 1))
        found = [data for _, data in events(reply.raw)]
        for event in found[:-1]:
            books.take(event)
        assert found[-1] == "[DONE]" and not books.after_the_end
        self.answers[number] = books.answer


def busy(cluster: Cluster, name: str, at_least: int) -> bool:
    return (cluster.instances().get(name, {}).get("num_running") or 0) >= at_least


def metric(cluster: Cluster, name: str) -> float:
    text = ask(f"{cluster.url}/metrics").raw.decode()
    return sum(float(found) for found in re.findall(rf"^xllm:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def drain_from_here(cluster: Cluster, name: str) -> DrainProgress:
    """Without the time that a process needs to start: the streams are to be in the middle."""
    registry = RegistryConfig(url=cluster.registry, timeout_s=30.0)
    return asyncio.run(drain_instance(registry, name, token="", timeout_s=100.0, migrate_after_s=0.0))


def drain(cluster: Cluster, name: str) -> dict[str, Any]:
    flags = ("--migrate-after", "0", "--drain-timeout", "100", "--registry", cluster.registry, "--json")
    with Command("cluster", "drain", name, *flags) as command:
        assert command.process.wait(200) == 0, command.text
    found: dict[str, Any] = json.loads(command.text.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path: Path = tmp_path_factory.mktemp("drain") / "profile.json"
    path.write_text(json.dumps({**asdict(PROFILES["instant"]), "name": "drain", "overhead_s": 0.04}))
    flags = ("--executor", f"timed:{path}", "--num-threads", "1", "--port", "0")
    late = ("--set", "server.migrate_after_s=0", "--registry", "tcp://127.0.0.1:0")
    with Command("serve", "--instances", "3", *flags, *late) as command:
        yield Cluster(command)
        assert command.end() == 0
        assert "Traceback" not in command.text


@pytest.mark.timeout(900)
def test_streams_go_on_elsewhere_token_exact_when_their_engine_leaves(cluster: Cluster) -> None:
    expected = Streams(cluster).join()
    assert all(isinstance(answer, Answer) for answer in expected), expected

    streams = Streams(cluster)
    until(lambda: busy(cluster, "engine-0", 2))
    progress = drain_from_here(cluster, "engine-0")
    assert progress.num_unfinished == 0 and progress.num_migrated >= 2, progress
    assert streams.join() == expected
    assert metric(cluster, "attempts_migrated_total") == progress.num_migrated

    streams = Streams(cluster)
    until(lambda: busy(cluster, "engine-1", 2))
    before = cluster.instances()["engine-1"]["pid"]
    os.kill(before, signal.SIGTERM)
    cluster.command.until(r"engine-1 has left; it is not started again")
    assert streams.join() == expected
    assert metric(cluster, "attempts_migrated_total") > progress.num_migrated

    # Nobody is left to take them: they end where they are.
    streams = Streams(cluster)
    until(lambda: busy(cluster, "engine-2", len(BODIES)))
    found = drain(cluster, "engine-2")
    assert found == {"instance": "engine-2", "num_ended": 0, "num_migrated": 0}
    assert streams.join() == expected
    assert metric(cluster, "attempts_retried_total") == 0
