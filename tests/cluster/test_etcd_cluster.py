"""Two engines and two service replicas that meet in a real etcd; engines are frozen and killed, etcd goes and returns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.command import Command
from tests.fakes.etcd import Etcd
from tests.fakes.http import ask
from tests.fakes.served import until
from xllm.config.cluster import RegistryConfig
from xllm.launch.cluster_admin import gather_status

ENGINE = ("--executor", "timed:instant", "--num-threads", "1")
WAIT_S = 100.0
LEASE_S = 5.0


class World:
    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.etcd = stack.enter_context(Etcd(directory))
        self.url = f"etcd://{self.etcd.endpoint}"
        self.registry = ("--registry", self.url, "--set", f"registry.lease_ttl_s={LEASE_S:g}")
        self.engines = {name: self.engine(name) for name in ("a", "b")}
        flags = ("service", "demo", *self.registry, "--port", "0", *ENGINE)
        self.services = [stack.enter_context(Command(*flags)) for _ in range(2)]
        self.urls = [s.until(r"serving demo at (http://[\d.:]+)")[1] for s in self.services]
        for url in self.urls:
            until(lambda url=url: self.states(url) == {"a": "ready", "b": "ready"}, WAIT_S)  # type: ignore[misc]

    def engine(self, name: str) -> Command:
        return self.stack.enter_context(
            Command("engine", "demo", *ENGINE, *self.registry, "--instance-id", name)
        )

    def states(self, url: str) -> dict[str, str]:
        return {name: row["state"] for name, row in ask(f"{url}/health").json["instances"].items()}

    def status(self) -> dict[str, list[dict[str, Any]]]:
        return asyncio.run(gather_status(RegistryConfig(url=self.url, timeout_s=30.0), ""))

    def complete(self, url: str) -> int:
        body = {"model": "demo", "prompt": "x", "max_tokens": 3, "ignore_eos": True}
        return ask(f"{url}/v1/completions", body).status


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        found = World(tmp_path_factory.mktemp("world"), stack)
        yield found
        for process in (*found.services, *found.engines.values()):
            assert process.process.poll() is None, process.text
            assert process.end() == 0, process.text
            assert "Traceback" not in process.text


def test_everybody_sees_everybody(world: World) -> None:
    ready = [("a", "ready"), ("b", "ready")]
    until(lambda: len(world.status()["services"]) == 2 and len(world.status()["leaders"]) == 1, WAIT_S)
    until(lambda: [(row["id"], row["state"]) for row in world.status()["instances"]] == ready, WAIT_S)
    found = world.status()
    assert sorted(row["url"] for row in found["services"]) == sorted(world.urls)
    (leader,) = found["leaders"]
    assert leader["duty"] == "controller" and leader["holder"] in {row["id"] for row in found["services"]}
    assert {world.complete(url) for url in world.urls for _ in range(4)} == {200}
    with Command("cluster", "status", *world.registry, "--json") as status:
        assert status.process.wait(WAIT_S) == 0
    assert len(json.loads(status.text)["instances"]) == 2


def test_requests_flow_while_etcd_is_away_and_it_reconciles(world: World) -> None:
    pids = {name: engine.pid for name, engine in world.engines.items()}
    world.etcd.kill()
    world.services[0].until("going on with the last view of 2 instances")
    end = time.monotonic() + LEASE_S + 2.0  # longer than a lease lives
    while time.monotonic() < end:
        assert {world.complete(url) for url in world.urls} == {200}
        states = world.states(world.urls[0])  # a busy machine may make them suspect for a moment
        assert states.keys() == {"a", "b"} and set(states.values()) <= {"ready", "suspect"}, states
        time.sleep(0.1)
    world.etcd.start()
    until(lambda: len(world.status()["instances"]) == 2, WAIT_S)
    until(lambda: len(world.status()["services"]) == 2, WAIT_S)
    assert {row["id"]: row["pid"] for row in world.status()["instances"]} == pids
    for url in world.urls:
        until(lambda url=url: world.states(url) == {"a": "ready", "b": "ready"}, WAIT_S)  # type: ignore[misc]
        assert world.complete(url) == 200
    assert "connection is cut" not in world.services[0].text


def test_a_frozen_engine_gets_nothing_and_may_come_back(world: World) -> None:
    frozen = world.engines["a"]
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        for url in world.urls:
            until(lambda url=url: world.states(url)["a"] in ("suspect", "lost"), WAIT_S)  # type: ignore[misc]
            assert {world.complete(url) for _ in range(4)} == {200}
        # The lease ends too, so that its requests are given up.
        until(lambda: world.states(world.urls[0])["a"] == "lost", WAIT_S)
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    for url in world.urls:
        until(lambda url=url: world.states(url) == {"a": "ready", "b": "ready"}, WAIT_S)  # type: ignore[misc]
        assert {world.complete(url) for _ in range(4)} == {200}


def test_a_killed_engine_is_lost_at_once_and_its_successor_is_another_incarnation(world: World) -> None:
    old = {row["id"]: row for row in world.status()["instances"]}["b"]
    os.kill(world.engines["b"].pid, signal.SIGKILL)
    for url in world.urls:
        until(lambda url=url: world.states(url)["b"] == "lost", WAIT_S)  # type: ignore[misc]
        assert {world.complete(url) for _ in range(4)} == {200}
    world.engines["b"] = world.engine("b")  # waits for the old lease to end
    for url in world.urls:
        until(lambda url=url: world.states(url) == {"a": "ready", "b": "ready"}, WAIT_S)  # type: ignore[misc]
    new = {row["id"]: row for row in world.status()["instances"]}["b"]
    assert new["incarnation"] != old["incarnation"]
    assert {world.complete(url) for url in world.urls for _ in range(4)} == {200}


def test_a_second_engine_of_the_same_name_gives_up(world: World) -> None:
    with Command("engine", "demo", *ENGINE, *world.registry, "--instance-id", "a") as second:
        assert second.process.wait(WAIT_S) != 0
    assert "held by another" in second.text
    assert world.status()["instances"][0]["pid"] == world.engines["a"].pid


def test_another_block_size_is_refused_with_the_reason(world: World) -> None:
    flags = (*ENGINE, *world.registry, "--instance-id", "odd", "--block-size", "64")
    with Command("engine", "demo", *flags) as odd:
        refusal = r"instance odd is refused: instance odd has block_size 64, instance \w+ has 16"
        world.services[0].until(refusal)
        assert world.states(world.urls[0])["odd"] == "refused"
        assert world.complete(world.urls[0]) == 200
        assert odd.end() == 0
    until(lambda: "odd" not in world.states(world.urls[0]), WAIT_S)


def test_the_leader_is_killed_and_another_replica_leads_and_serves(world: World) -> None:
    until(lambda: len(world.status()["services"]) == 2 and len(world.status()["leaders"]) == 1, WAIT_S)
    found = world.status()
    (leader,) = found["leaders"]
    pids = {row["id"]: row["pid"] for row in found["services"]}
    (index,) = [n for n, service in enumerate(world.services) if service.pid == pids[leader["holder"]]]
    killed, _ = world.services.pop(index), world.urls.pop(index)
    os.kill(killed.pid, signal.SIGKILL)
    (other,) = set(pids) - {leader["holder"]}
    until(lambda: [row["holder"] for row in world.status()["leaders"]] == [other], WAIT_S)
    assert {world.complete(world.urls[0]) for _ in range(4)} == {200}
    until(lambda: [row["id"] for row in world.status()["services"]] == [other], WAIT_S)
