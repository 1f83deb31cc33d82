"""Network namespaces: what the cable does; and a short run over them. Skipped where the machine grants none."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.namespaces import Namespace, why_not
from tests.chaos.run import ChaosOptions, format_report, run_chaos
from tests.chaos.schedule import Fault
from tests.chaos.world import WorldOptions

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no network namespaces: {why_not()}")

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("up", flush=True)
peer, _ = server.accept()
while data := peer.recv(100):
    print(data.decode(), flush=True)
    peer.sendall(data)
"""


def test_a_pulled_cable_loses_both_directions_and_a_mute_one_the_answers() -> None:
    with Namespace(1).made() as network:
        command = [*network.prefix, sys.executable, "-c", ECHO, network.inner]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stdout.readline() == "up\n"
            with socket.create_connection((network.inner, 7000), timeout=60) as link:

                def ask(text: str) -> str:
                    link.sendall(text.encode())
                    return link.recv(100).decode()

                assert ask("a") == "a" and server.stdout.readline() == "a\n"
                link.settimeout(0.5)
                network.partition()
                with pytest.raises(TimeoutError):
                    ask("b")
                network.heal()
                link.settimeout(100)
                assert link.recv(100) == b"b" and server.stdout.readline() == "b\n"
                link.settimeout(0.5)
                network.mute()
                with pytest.raises(TimeoutError):
                    ask("c")
                assert server.stdout.readline() == "c\n"  # it was heard
                network.heal()
                link.settimeout(100)
                assert link.recv(100) == b"c"
            assert server.wait(100) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_when_the_network_of_an_engine_is_gone(tmp_path: Path) -> None:
    faults = [
        Fault(kind="partition engine", target="engine-0", at_s=1.0, lasts_s=5.0),
        Fault(kind="mute engine", target="engine-1", at_s=10.0, lasts_s=5.0),
    ]
    world = WorldOptions(num_engines=3, lease_ttl_s=2.0, netns=True)
    options = ChaosOptions(seed=4, faults=faults, world=world, num_clients=6, num_bodies=16, max_tokens=80)
    report = asyncio.run(run_chaos(tmp_path, options))
    text = format_report(report)
    assert report["problems"] == [], text
    assert all(row["noticed_s"] and (row["worst_gap_s"] or not row["streams"]) for row in report["faults"]), (
        text
    )
