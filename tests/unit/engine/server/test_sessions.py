"""Who gets the outputs of requests whose connection was lost."""

from __future__ import annotations

from tests.fakes.scenes import run
from tests.fakes.served_engine import make_request, served_engine, until
from tests.fakes.step_runner import FakeStepRunner
from xllm.base.waits import WaitTable
from xllm.engine.server.engine_server import ServerOptions
from xllm.engine.server.sessions import Sessions
from xllm.errors import ProtocolError
from xllm.types.output import OutputFrame, RequestOutput


def test_requests_of_a_lost_connection_end_after_the_grace_time() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner, options=ServerOptions(grace_s=4.0)) as engine:
            lost, _ = await engine.connect("edge-1")
            other, inbox = await engine.connect("edge-2")
            await lost.submit(make_request("a", n=2))
            await other.submit(make_request("b"))
            await lost.close()
            await until(lambda: any(w.owner == "session edge-1" for w in engine.waits.snapshot()))
            assert engine.core.num_unfinished == 3
            await until(lambda: engine.core.num_unfinished == 1)
            runner.gate.set()
            await until(lambda: ("b", 0) in inbox.terminal())
            assert not [w for w in engine.waits.snapshot() if w.owner.startswith("session")]
            engine.core.check()
            load = engine.core.load()
            assert load.blocks_used == load.blocks_leased == load.blocks_pinned == 0
            await other.close()

    run(scene)


def test_a_peer_that_comes_back_takes_over_and_misses_nothing() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        async with served_engine(runner=runner, options=ServerOptions(grace_s=30.0)) as engine:
            before, inbox_before = await engine.connect("edge")
            runner.gate.clear()
            await before.submit(make_request("a", max_tokens=20))
            await before.submit(make_request("short", max_tokens=1))
            await before.close()
            await until(lambda: any(w.owner == "session edge" for w in engine.waits.snapshot()))
            runner.gate.set()
            await until(lambda: engine.core.num_unfinished == 0)  # all of it happened while nobody listened
            after, inbox = await engine.connect("edge")
            await until(lambda: len(inbox.terminal()) == 2)
            assert inbox_before.outputs == []
            assert len(inbox.tokens("a")) == 20
            assert [o.first_token_index for o in inbox.outputs if o.request_id == "a"] == list(range(20))
            await after.submit(make_request("next", max_tokens=2))
            await until(lambda: ("next", 0) in inbox.terminal())
            await after.close()

    run(scene)


def test_a_second_connection_of_a_live_peer_replaces_the_first() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner) as engine:
            _, inbox_old = await engine.connect("edge")
            old = engine.server  # the old client object is not needed: its connection is closed by the engine
            first, inbox_first = await engine.connect("edge")
            await until(lambda: bool(inbox_old.lost))
            await first.submit(make_request("a"))
            second, inbox_second = await engine.connect("edge")
            await until(lambda: bool(inbox_first.lost))
            runner.gate.set()
            await until(lambda: ("a", 0) in inbox_second.terminal())
            assert inbox_first.outputs == []
            assert old.load().health.num_unfinished == 0
            await second.close()

    run(scene)


def test_an_anonymous_peer_has_no_grace() -> None:
    async def scene() -> None:
        runner = FakeStepRunner()
        runner.gate.clear()
        async with served_engine(runner=runner, options=ServerOptions(grace_s=3600.0)) as engine:
            client, _ = await engine.connect("")
            other, _ = await engine.connect("")
            await client.submit(make_request("a"))
            await other.submit(make_request("b"))
            await client.close()
            await until(lambda: engine.core.num_unfinished == 1)
            await other.close()
            await until(lambda: engine.core.num_unfinished == 0)

    run(scene)


class Line:
    """A connection that only notes frames; outputs with more than ``max_tokens`` do not fit."""

    def __init__(self, peer: str, max_tokens: int = 10**9) -> None:
        self.peer = peer
        self.max_tokens = max_tokens
        self.frames: list[OutputFrame] = []
        self.closed = ""

    def send_outputs(self, frame: OutputFrame) -> None:
        if sum(len(output.token_ids) for output in frame.outputs) > self.max_tokens:
            raise ProtocolError("too large")
        self.frames.append(frame)

    def close(self, reason: str) -> None:
        self.closed = reason


def _output(name: str, choice: int = 0, num_tokens: int = 1, *, end: bool = False) -> RequestOutput:
    return RequestOutput(name, 0, choice, 0, (7,) * num_tokens, finish_reason="stop" if end else None)


def test_a_choice_ends_once_whatever_the_core_says() -> None:
    async def scene() -> None:
        line = Line("edge")
        sessions = Sessions(grace_s=1, waits=WaitTable(), abandon=lambda *_: None)
        sessions.connected(line)  # type: ignore[arg-type]
        sessions.own(line, make_request("a", n=2))  # type: ignore[arg-type]
        sessions.deliver(1, [_output("a", 0, end=True), _output("a", 1), _output("stranger")])
        sessions.deliver(2, [_output("a", 0, end=True), _output("a", 1, end=True)])
        sessions.deliver(3, [_output("a", 0, end=True), _output("a", 1, end=True)])
        ends = [o.choice for f in line.frames for o in f.outputs if o.finish_reason]
        assert ends == [0, 1]
        assert [o.request_id for f in line.frames for o in f.outputs] == ["a"] * 3
        assert sessions.num_requests == 0

    run(scene)


def test_an_output_too_large_for_a_frame_ends_its_choice_and_no_other() -> None:
    async def scene() -> None:
        line = Line("edge", max_tokens=5)
        abandoned: list[object] = []
        sessions = Sessions(grace_s=1, waits=WaitTable(), abandon=lambda *args: abandoned.append(args))
        sessions.connected(line)  # type: ignore[arg-type]
        sessions.own(line, make_request("big", n=2))  # type: ignore[arg-type]
        sessions.own(line, make_request("small"))  # type: ignore[arg-type]
        sessions.deliver(1, [_output("big", 1, num_tokens=9), _output("small")])
        sessions.deliver(2, [_output("big", 1), _output("big", 0), _output("small", end=True)])
        sent = [(o.request_id, o.choice, o.finish_reason) for f in line.frames for o in f.outputs]
        assert sent == [("big", 1, "error"), ("small", 0, None), ("big", 0, None), ("small", 0, "stop")]
        assert abandoned == [(("big", 0), 1, "too large")]

    run(scene)


def test_what_is_kept_for_an_absent_peer_is_bounded() -> None:
    async def scene() -> None:
        line = Line("edge")
        abandoned: list[object] = []
        sessions = Sessions(
            grace_s=100, waits=WaitTable(), abandon=lambda key, *_: abandoned.append(key), max_kept_outputs=10
        )
        sessions.connected(line)  # type: ignore[arg-type]
        sessions.own(line, make_request("a"))  # type: ignore[arg-type]
        sessions.disconnected(line, "gone")  # type: ignore[arg-type]
        for step in range(10):
            sessions.deliver(step, [_output("a")])
        assert abandoned == []
        sessions.deliver(10, [_output("a")])
        assert abandoned == [("a", 0)]
        assert sessions.num_requests == 0
        back = Line("edge")
        sessions.connected(back)  # type: ignore[arg-type]
        assert back.frames == []
        sessions.close()

    run(scene)
