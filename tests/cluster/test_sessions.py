"""``session_id`` with ``--routing-policy session_affinity``, from the HTTP edge to engines that are processes."""

from __future__ import annotations

from tests.fakes.command import Command
from tests.fakes.http import ask
from tests.fakes.served import until

FLAGS = (
    "--executor",
    "timed:instant",
    "--num-threads",
    "1",
    "--port",
    "0",
    "--registry",
    "tcp://127.0.0.1:0",
    # Nobody is suspect, and loses its sessions, because the machine stood still.
    "--set",
    "cluster.suspect_after_s=60",
    "--set",
    "cluster.lost_after_s=60",
)


def test_requests_of_a_session_go_to_one_instance_and_sessions_are_spread() -> None:
    with Command("serve", "--instances", "3", "--routing-policy", "session_affinity", *FLAGS) as command:
        url = command.until(r"serving demo at (http://[\d.:]+)")[1]
        until(lambda: [s["state"] for s in ask(f"{url}/health").json["instances"].values()] == ["ready"] * 3)

        def home(session: str, name: str) -> str:
            body = {"prompt": "x", "max_tokens": 2, "session_id": session, "request_id": name}
            reply = ask(f"{url}/v1/completions", body)
            assert reply.status == 200, reply.raw
            rows = ask(f"{url}/debug/requests/{reply.json['id']}").json["decisions"]
            return str(next(row["instance"] for row in rows if row["event"] == "routed"))

        first = {f"s{i}": home(f"s{i}", f"first-{i}") for i in range(12)}
        again = {f"s{i}": home(f"s{i}", f"again-{i}") for i in range(12)}
        assert first == again
        assert len(set(first.values())) == 3, first
        assert command.end() == 0
