"""The RPC port of a real engine under fuzz: bad bytes, frames too large, values nobody would send; it serves on."""

from __future__ import annotations

import asyncio
import logging
import random
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.fakes.served_engine import ServedEngine, make_request, served_engine, until
from xllm.rpc.address import parse_address
from xllm.rpc.link import GREETING_FRAME_BYTES, LinkLimits
from xllm.types.wire import (
    Abort,
    Ack,
    DebugReply,
    DebugRequest,
    Drain,
    Failure,
    FromEngine,
    Hello,
    Profile,
    Submit,
)

HEADER = struct.Struct(">II")
EVIL: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, -0.0, 1e308, -1e308, float("nan"), float("inf"),
    float("-inf"), "", "x" * 5000, "\x00", "\U0010ffff", b"", b"\xff" * 40, [], {}, [[]], [None], [-1], [2**62],
    [0] * 5000, [[0] * 500] * 3, {"a": 1}, {1: 2}, {"": []},
)  # fmt: skip


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(280):
            await scene()

    asyncio.run(bounded())


def frame(call_id: int, message: Any) -> bytes:
    body = msgspec.msgpack.encode(message)
    return HEADER.pack(len(body), call_id) + body


class Attacker:
    """A greeted raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, engine: ServedEngine) -> Attacker:
        address = parse_address(engine.address)
        attacker = cls(*await asyncio.open_connection(address.host, address.port))
        attacker.writer.write(frame(0, Hello(peer="attacker")))
        assert isinstance((await attacker.next())[1], Hello)
        return attacker

    async def next(self) -> tuple[int, Any]:
        """The next message, or (0, None) at the end."""
        try:
            num_bytes, call_id = HEADER.unpack(await self.reader.readexactly(HEADER.size))
            return call_id, msgspec.msgpack.decode(await self.reader.readexactly(num_bytes), type=FromEngine)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, None

    async def answer(self, call_id: int) -> Any:
        """The answer to a call, or why the engine hung up (None: it did so silently)."""
        while True:
            found, message = await self.next()
            if message is None or found == call_id:
                return message
            if isinstance(message, Failure):
                return message


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))


def replaced(value: Any, path: tuple[Any, ...], evil: Any) -> Any:
    if not path:
        return evil
    if isinstance(value, dict):
        return {**value, path[0]: replaced(value[path[0]], path[1:], evil)}
    return [replaced(value[0], path[1:], evil), *value[1:]]


def full_request(number: int) -> dict[str, Any]:
    """A request with every field said."""
    plain: dict[str, Any] = msgspec.to_builtins(make_request(f"fuzz-{number}", 5))
    extra = {
        "attempt": 0, "model": "m", "adapter": None, "media": [], "media_spans": [], "resumed_output_ids": [],
        "ended_choices": [], "eos_token_ids": [7], "grammar": None, "priority": 0, "offline": False, "tenant": "t",
        "session": None, "cache_salt": "", "age_s": 0.5, "deadline_in_s": 20.0, "slo": {"ttft_ms": 5e4, "tpot_ms": 5e4},
        "route": {"prefill": "a", "decode": "a"}, "program": {"kind": "generate"}, "block_hashes": [],
        "block_hash_size": 4,
    }  # fmt: skip
    sampling = {
        "n": 1, "temperature": 1.0, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.1,
        "frequency_penalty": 0.1, "repetition_penalty": 1.1, "logit_bias": {5: 1.0}, "seed": 3, "max_tokens": 5,
        "min_tokens": 1, "stop": ["a"], "stop_token_ids": [9], "ignore_eos": True, "bad_words_token_ids": [[4]],
        "allowed_token_ids": [], "logprobs": 1, "prompt_logprobs": 1,
    }  # fmt: skip
    return {**plain, **extra, "sampling": sampling}


def test_every_field_of_a_request_takes_any_value_and_the_engine_serves_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> None:
        rng = random.Random(5)
        async with served_engine(num_blocks=400) as engine:
            plain = {"type": "submit", "request": full_request(0)}
            cases = [(path, evil) for path in leaves(plain) for evil in EVIL]
            rng.shuffle(cases)
            attacker = await Attacker.connect(engine)
            num_accepted = num_refused = 0
            for number, (path, evil) in enumerate(cases):
                message = replaced({"type": "submit", "request": full_request(number)}, path, evil)
                attacker.writer.write(frame(7, message))
                answer = await attacker.answer(7)
                if isinstance(answer, Ack):
                    num_accepted += 1
                else:
                    assert answer is None or isinstance(answer, Failure), answer
                    num_refused += 1
                if number % 50 == 0 or not isinstance(answer, Ack):
                    engine.core.check()
                    attacker.writer.close()
                    attacker = await Attacker.connect(engine)
            assert num_accepted > 50 and num_refused > 500
            attacker.writer.close()
            await serves_on(engine)

    run(scene)
    assert no_bug_of_ours(caplog)


@pytest.mark.parametrize(
    "call", [Drain(timeout_s=1.0), Profile(action="start"), DebugRequest(request_id="x"),
             Abort(request_id="x", attempt=0, choice=0)], ids=lambda call: type(call).__name__,
)  # fmt: skip
def test_every_field_of_the_other_calls_takes_any_value(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with served_engine() as engine:
            plain = msgspec.to_builtins(call)
            for name in plain:
                for evil in EVIL:
                    is_well = isinstance(evil, int | float) and 0 <= evil < 1e300
                    is_well |= name == "migrate_after_s" and evil is None
                    if isinstance(call, Drain) and is_well:
                        continue  # a drain that is well said is obeyed
                    attacker = await Attacker.connect(engine)
                    attacker.writer.write(frame(3, {**plain, name: evil}))
                    answer = await attacker.answer(3)
                    assert answer is None or isinstance(answer, Ack | Failure | DebugReply)
                    attacker.writer.close()
            await serves_on(engine)

    run(scene)
    assert no_bug_of_ours(caplog)


def test_frames_too_large_or_cut_short_cost_their_sender_only() -> None:
    async def scene() -> None:
        limit = LinkLimits().max_frame_bytes
        async with served_engine() as engine:
            client, _ = await engine.connect("honest")
            for announced in (limit + 1, 2**31, 2**32 - 1):
                attacker = await Attacker.connect(engine)
                attacker.writer.write(HEADER.pack(announced, 1))
                answer = await attacker.answer(1)
                assert isinstance(answer, Failure) and "limit" in answer.error.message
                attacker.writer.close()
            address = parse_address(engine.address)
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(HEADER.pack(GREETING_FRAME_BYTES + 1, 0))  # nobody has proved himself yet
            await reader.read()
            writer.close()
            attackers = [await Attacker.connect(engine) for _ in range(20)]
            for number, attacker in enumerate(attackers):  # announced, begun and never finished
                attacker.writer.write(HEADER.pack(limit, 1) + b"\x81" * number)
            assert (await client.health()).state == "ready"
            for attacker in attackers:
                attacker.writer.close()
            deep = b"\x91" * 100_000 + b"\x90"
            attacker = await Attacker.connect(engine)
            attacker.writer.write(HEADER.pack(len(deep), 1) + deep)
            assert isinstance(await attacker.answer(1), Failure | None)
            attacker.writer.close()
            await client.close()
            await serves_on(engine)

    run(scene)


def test_a_flood_of_honest_frames_with_garbage_between_them() -> None:
    async def scene() -> None:
        rng = random.Random(8)
        async with served_engine() as engine:
            for number in range(60):
                attacker = await Attacker.connect(engine)
                good = [
                    frame(2, Submit(request=make_request(f"g{number}-{i}", 3)))
                    for i in range(rng.randint(1, 5))
                ]
                stream = b"".join(good) + rng.randbytes(rng.randrange(1, 200))
                cut = rng.randrange(len(stream))
                attacker.writer.write(stream[:cut])
                await attacker.writer.drain()
                attacker.writer.write(stream[cut:])
                attacker.writer.close()
            await serves_on(engine)

    run(scene)


async def serves_on(engine: ServedEngine) -> None:
    """Nothing is left of the attack, and an honest request is answered."""
    client, inbox = await engine.connect("edge")
    await client.submit(make_request("honest", 4))
    await until(lambda: ("honest", 0) in inbox.terminal())
    assert inbox.tokens("honest") == [3, 4, 5, 6]
    for session in list(engine.server._sessions._by_peer.values()):
        if session.peer == "attacker" and session.connection is None:
            engine.server._sessions._end(session, "the test is over")
    await until(lambda: engine.core.num_unfinished == 0)
    engine.core.check()
    load = (await client.load()).load
    assert (load.blocks_used, load.blocks_leased, load.num_running, load.num_waiting) == (0, 0, 0, 0)
    await client.close()


def no_bug_of_ours(caplog: pytest.LogCaptureFixture) -> bool:
    """Nothing was caught that is no typed error."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not found, found[:5]
    return True
