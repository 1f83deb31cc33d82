"""``xllm serve --instances N``: engines that die are started again, one is drained by command, SIGTERM ends all."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.command import Command
from tests.fakes.http import ask
from tests.fakes.served import until
from xllm.config.cluster import RegistryConfig
from xllm.launch.cluster_admin import gather_status

ENGINE = ("--executor", "timed:instant", "--num-threads", "1")
FLAGS = (*ENGINE, "--port", "0")


class Cluster:
    def __init__(self, command: Command) -> None:
        self.command = command
        self.registry = command.until(r"the registry is at (\S+)")[1]
        self.url = command.until(r"serving demo at (http://[\d.:]+)")[1]

    def instances(self) -> dict[str, dict[str, Any]]:
        found = asyncio.run(gather_status(RegistryConfig(url=self.registry, timeout_s=30.0), ""))
        return {row["id"]: row for row in found["instances"]}

    def states(self) -> dict[str, str]:
        return {name: row["state"] for name, row in self.instances().items()}

    def complete(self, max_tokens: int = 3) -> int:
        body = {"model": "demo", "prompt": "x", "max_tokens": max_tokens, "ignore_eos": True}
        return ask(f"{self.url}/v1/completions", body).status


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Command("serve", "--instances", "2", *FLAGS, "--registry", "tcp://127.0.0.1:0") as command:
        yield Cluster(command)
        assert command.end() == 0
        assert "Traceback" not in command.text


def test_a_killed_engine_is_started_again_as_another_incarnation(cluster: Cluster) -> None:
    until(lambda: cluster.states() == {"engine-0": "ready", "engine-1": "ready"})
    before = cluster.instances()
    assert cluster.complete() == 200
    os.kill(before["engine-1"]["pid"], signal.SIGKILL)
    until(
        lambda: cluster.instances().get("engine-1", before["engine-1"])["pid"] != before["engine-1"]["pid"],
        100,
    )
    until(lambda: cluster.states() == {"engine-0": "ready", "engine-1": "ready"}, 100)
    after = cluster.instances()
    assert after["engine-1"]["incarnation"] != before["engine-1"]["incarnation"]
    assert after["engine-0"]["incarnation"] == before["engine-0"]["incarnation"]
    health = ask(f"{cluster.url}/health")
    until(lambda: ask(f"{cluster.url}/health").json["instances"]["engine-1"]["state"] == "ready", 100)
    assert health.status == 200
    assert {cluster.complete() for _ in range(4)} == {200}
    assert "is started again" in cluster.command.text


def test_a_machine_that_is_far_too_busy_makes_no_engine_dead(cluster: Cluster) -> None:
    before = {name: row["incarnation"] for name, row in cluster.instances().items()}
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        end = time.monotonic() + 6.0
        seen: set[str] = set()
        while time.monotonic() < end:
            assert cluster.complete() == 200
            reports = ask(f"{cluster.url}/health").json["instances"]
            seen |= {report["state"] for report in reports.values()}
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait(30)
    assert seen <= {"ready", "suspect"}, seen
    until(lambda: {name: row["incarnation"] for name, row in cluster.instances().items()} == before)


def test_one_is_drained_by_command_finishes_its_work_and_stays_away(cluster: Cluster) -> None:
    statuses: list[int] = []

    def work() -> None:
        for _ in range(5):
            statuses.append(cluster.complete(400))

    clients = [threading.Thread(target=work) for _ in range(4)]
    for client in clients:
        client.start()
    with Command("cluster", "drain", "engine-0", "--no-wait", "--registry", cluster.registry) as begun:
        assert begun.process.wait(200) == 0, begun.text
    assert "takes no new requests" in begun.text and cluster.states()["engine-0"] == "draining"
    with Command("cluster", "drain", "engine-0", "--wait", "--registry", cluster.registry, "--json") as drain:
        assert drain.process.wait(200) == 0, drain.text
    for client in clients:
        client.join(120)
    assert json.loads(drain.text.splitlines()[-1]) == {
        "instance": "engine-0",
        "num_ended": 0,
        "num_migrated": 0,
    }
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 16, statuses
    assert cluster.states() == {"engine-1": "ready"}
    cluster.command.until(r"engine-0 has left; it is not started again")
    assert {cluster.complete() for _ in range(4)} == {200}
    with Command("cluster", "status", "--registry", cluster.registry) as status:
        assert status.process.wait(200) == 0
    assert "engine-1" in status.text and "SERVICE" in status.text and cluster.url in status.text
    with Command("cluster", "roles", "--registry", cluster.registry) as roles:
        assert roles.process.wait(200) == 0
    assert re.search(r"demo +\S+ +mixed +engine-1 +ready", roles.text) and "controller" in roles.text
    with Command("cluster", "drain", "engine-0", "--registry", cluster.registry) as again:
        assert again.process.wait(200) == 1
    assert "there are: engine-1" in again.text


def test_a_service_listens_before_any_engine_and_serves_when_one_joins() -> None:
    with Command("service", "demo", *FLAGS, "--registry", "tcp://127.0.0.1:0", "--host-registry") as service:
        registry = service.until(r"the registry is at (\S+)")[1]
        url = service.until(r"listening at (http://[\d.:]+)")[1]
        assert ask(f"{url}/health").status == 200 and ask(f"{url}/ready").status == 503
        assert ask(f"{url}/metrics").status == 200 and ask(f"{url}/openapi.json").status == 200
        (card,) = ask(f"{url}/v1/models").json["data"]
        assert card["id"] == "demo" and card["max_model_len"] is None
        body = {"model": "demo", "prompt": "x", "max_tokens": 3, "ignore_eos": True}
        refused = ask(f"{url}/v1/completions", body)
        assert refused.status == 503 and "xllm engine demo --registry" in refused.json["error"]["message"]
        assert float(refused.headers["retry-after"]) > 0
        with Command("engine", "demo", *ENGINE, "--registry", registry) as engine:
            service.until(r"serving demo at http://[\d.:]+")
            assert ask(f"{url}/ready").status == 200
            assert ask(f"{url}/v1/completions", body).status == 200
            assert ask(f"{url}/v1/models").json["data"][0]["max_model_len"] > 0
            assert engine.end() == 0
        until(lambda: ask(f"{url}/ready").status == 503, 100)
        assert service.end() == 0 and "Traceback" not in service.text


def test_a_service_that_nobody_joins_ends_like_any_other() -> None:
    with Command("service", "demo", *FLAGS, "--registry", "tcp://127.0.0.1:0", "--host-registry") as service:
        service.until(r"listening at")
        assert service.end() == 0 and "Traceback" not in service.text


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("serve", "--instances", "0"), "--instances is 0"),
        (("serve", "--instances", "2", "--endpoint", "tcp://127.0.0.1:7001"), "cannot all listen"),
        (("serve", "--registry", "http://x:1"), "etcd://HOST:PORT"),
        (("service",), "--registry"),
        (("service", "--engine", "unix:/x", "--registry", "tcp://127.0.0.1:1"), "either"),
        (("service", "--registry", "etcd://127.0.0.1:1", "--host-registry"), "etcd is its own"),
        (("engine", "--instance-id", "a"), "without a registry"),
        (("engine", "--instance-id", "a/b", "--registry", "tcp://127.0.0.1:1"), "letters, digits"),
        (
            (
                "engine",
                "--registry",
                "tcp://127.0.0.1:1",
                "--endpoint",
                "tcp://0.0.0.0:0",
                "--rpc-token",
                "t",
            ),
            "--advertise",
        ),
        (("cluster", "drain", "--registry", "tcp://127.0.0.1:1"), "name of one instance"),
        (("cluster", "status"), "no registry is given"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from xllm.cli.main import main

    assert main([*args, *(("--executor", "timed:instant") if args[0] != "cluster" else ())]) == 2
    assert said in capsys.readouterr().err
