"""Real sockets: EngineClient against EngineListener, and both against misbehaving peers."""

from __future__ import annotations

import asyncio
import random
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tests.fakes.engine_api import RecordingEngineApi
from tests.fakes.scenes import run
from xllm.base.waits import WaitTable
from xllm.errors import (
    CapacityError,
    ConfigError,
    DeadlineExceeded,
    InstanceLost,
    InternalError,
    InvalidRequest,
    ProtocolError,
    Unauthorized,
)
from xllm.rpc.client import EngineClient
from xllm.rpc.frame import HEADER, FrameReader
from xllm.rpc.link import LinkLimits
from xllm.rpc.server import EngineListener
from xllm.types.output import OutputFrame, RequestOutput
from xllm.types.request import Request
from xllm.types.wire import Failure, FromEngine, GetHealth, HealthReply, Hello, KvEvents, LoadReply, Submit

WAIT_S = 100.0


@asynccontextmanager
async def listening(
    api: RecordingEngineApi,
    address: str = "127.0.0.1:0",
    token: str = "",
    limits: LinkLimits | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[EngineListener]:
    listener = await EngineListener.start(
        address, api, engine_id="engine-0", token=token, limits=limits, tls=tls, waits=WaitTable()
    )
    try:
        yield listener
    finally:
        await listener.close("test over")


@asynccontextmanager
async def mute_engine(*greeting: bytes) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """A server that sends ``greeting`` to whoever connects and then nothing; yields its address and writers."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.writelines(greeting)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", writers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # lets the transports run their last callbacks


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not true():
            await asyncio.sleep(0.005)


def request(name: str, prompt: tuple[int, ...] = (1, 2, 3)) -> Request:
    return Request(id=name, prompt_token_ids=prompt, seed=1)


def output(name: str, tokens: tuple[int, ...] = (5,)) -> RequestOutput:
    return RequestOutput(name, 0, 0, 0, tokens)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_every_call_reaches_the_engine_and_is_answered(kind: str, tmp_path: Path) -> None:
    async def scene() -> None:
        api = RecordingEngineApi(max_requests=1)
        async with listening(api, "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/s") as listener:
            client = await EngineClient.connect(str(listener.address), peer="edge-1")
            assert client.engine_id == "engine-0"
            assert api.connections[0].peer == "edge-1"
            await client.submit(request("a"))
            assert api.requests == [request("a")]
            with pytest.raises(CapacityError, match="full") as refused:
                await client.submit(request("b"))
            assert (refused.value.retry_after_s, refused.value.hint) == (3.0, "come back")
            await client.abort("a", attempt=2, choice=1, reason="stop")
            client.send_abort("b")
            assert (await client.load()).load.num_running == 3
            assert (await client.health()).num_unfinished == 3
            assert (await client.info()).id == "engine"
            await client.drain(2.5)
            await client.start_profile()
            await client.stop_profile()
            assert await client.debug_request("a") == [{"id": "a", "age_s": 0.5}]
            assert await client.debug_waits() == [{"owner": "nobody"}]
            with pytest.raises(InternalError, match="a bug of ours"):
                await client.reset_prefix_cache()
            await client.shutdown()
            assert api.calls == [
                ("abort", "a", 2, 1, "stop"),
                ("abort", "b", 0, None, "abort"),
                ("drain", 2.5),
                ("profile", "start"),
                ("profile", "stop"),
                ("shutdown",),
            ]
            await client.close()
            await until(lambda: bool(api.lost))
            assert [peer for peer, _ in api.lost] == ["edge-1"]

    run(scene)


def test_unasked_messages_reach_the_callbacks_in_order() -> None:
    async def scene() -> None:
        api = RecordingEngineApi()
        frames: list[OutputFrame] = []
        beats: list[LoadReply] = []
        events: list[KvEvents] = []
        async with listening(api) as listener:
            client = await EngineClient.connect(
                str(listener.address),
                peer="edge",
                on_outputs=frames.append,
                on_heartbeat=beats.append,
                on_kv_events=events.append,
            )
            sent = [OutputFrame(step, tuple(output(f"r{i}") for i in range(64))) for step in range(200)]
            for frame in sent:
                api.connections[0].send_outputs(frame)
            api.connections[0].send_heartbeat(api.load())
            await client.subscribe_kv_events()
            assert frames == sent
            assert beats == [api.load()]
            assert [event.is_snapshot for event in events] == [True]
            await client.close()

    run(scene)


def test_many_calls_in_flight_each_get_their_own_answer() -> None:
    async def scene() -> None:
        async with listening(RecordingEngineApi()) as listener:
            client = await EngineClient.connect(str(listener.address), peer="edge")
            rows = await asyncio.gather(*(client.debug_request(f"r{i}") for i in range(500)))
            assert [row[0]["id"] for row in rows] == [f"r{i}" for i in range(500)]
            await client.close()

    run(scene)


def test_a_burst_of_large_requests_waits_instead_of_being_cut() -> None:
    async def scene() -> None:
        api = RecordingEngineApi()
        limits = LinkLimits(max_buffered_bytes=2 * 1024 * 1024)
        async with listening(api, limits=limits) as listener:
            client = await EngineClient.connect(str(listener.address), peer="edge", deadline_s=200)
            prompt = tuple(range(70_000, 90_000))  # 100 kB each, 20 MB in all
            await asyncio.gather(*(client.submit(request(f"r{i}", prompt)) for i in range(200)))
            assert sorted(r.id for r in api.requests) == sorted(f"r{i}" for i in range(200))
            await client.close()

    run(scene)


def test_wrong_token_is_refused_with_its_reason() -> None:
    async def scene() -> None:
        api = RecordingEngineApi()
        async with listening(api, token="secret") as listener:
            for token in ("", "Secret", "secret2", "\u00e9"):
                with pytest.raises(Unauthorized, match="token"):
                    await EngineClient.connect(str(listener.address), peer="edge", token=token)
            client = await EngineClient.connect(str(listener.address), peer="edge", token="secret")
            await client.close()
            assert len(api.connections) == 1

    run(scene)


def test_a_network_address_needs_a_token() -> None:
    with pytest.raises(ConfigError, match="anybody"):
        asyncio.run(EngineListener.start("0.0.0.0:0", RecordingEngineApi(), engine_id="e"))


def test_nobody_there_is_instance_lost(tmp_path: Path) -> None:
    with pytest.raises(InstanceLost, match="cannot connect"):
        asyncio.run(EngineClient.connect(f"unix:{tmp_path}/none", peer="edge"))


async def _say(address: str, *messages: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for message in messages:
        writer.write(message)
    await writer.drain()
    return reader, writer


def _frame(call_id: int, message: object) -> bytes:
    body = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
    return HEADER.pack(len(body), call_id) + body


def _messages(data: bytes) -> list[FromEngine]:
    decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
    return [decoder.decode(body) for _, body in FrameReader(10**8).feed(data)]


@pytest.mark.parametrize(
    ("case", "bytes_sent"),
    [
        ("no msgpack", _frame(1, b"\xc1\xc1")),
        ("unknown message", _frame(1, b"\x81\xa4type\xa4boom")),
        ("call before hello", _frame(1, GetHealth())),
        ("other version", _frame(0, Hello(protocol=99, peer="x"))),
        ("huge frame", HEADER.pack(2**32 - 1, 1)),
        ("http", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("second hello", _frame(0, Hello(peer="x")) + _frame(1, Hello(peer="x"))),
        ("garbage after hello", _frame(0, Hello(peer="x")) + _frame(1, b"\x93\x01\x02\x03")),
    ],
)
def test_malformed_bytes_are_answered_with_a_reason_and_the_engine_goes_on(
    case: str, bytes_sent: bytes
) -> None:
    async def scene() -> None:
        async with listening(RecordingEngineApi()) as listener:
            address = str(listener.address)
            reader, writer = await _say(address, bytes_sent)
            if case == "second hello":  # a mistake of one call, not of the stream
                got = await reader.readuntil(b"Hello on one connection")
            else:
                got = await reader.read()
                failure = _messages(got)[-1]
                assert isinstance(failure, Failure)
                assert failure.error.type_name == ProtocolError.__name__
            writer.close()
            client = await EngineClient.connect(address, peer="edge")
            assert (await client.health()).state == "ready"
            await client.close()

    run(scene)


def test_random_streams_do_not_disturb_the_engine() -> None:
    async def scene() -> None:
        rng = random.Random(3)
        good = [_frame(0, Hello(peer="x")), _frame(1, GetHealth()), _frame(2, Submit(request=request("a")))]
        async with listening(RecordingEngineApi()) as listener:
            address = str(listener.address)
            client = await EngineClient.connect(address, peer="edge")
            for _ in range(300):
                stream = bytearray(b"".join(good[: rng.randrange(4)]) + rng.randbytes(rng.randrange(60)))
                for _ in range(rng.randrange(4)):
                    if stream:
                        stream[rng.randrange(len(stream))] = rng.randrange(256)
                _, writer = await _say(address, bytes(stream))
                writer.close()
            assert (await client.health()).state == "ready"
            assert not client.is_lost
            await client.close()

    run(scene)


def test_bad_values_refuse_one_call_and_keep_the_connection() -> None:
    async def scene() -> None:
        async with listening(RecordingEngineApi()) as listener:
            plain = msgspec.msgpack.decode(msgspec.msgpack.encode(Submit(request=request("a"))))
            plain["request"]["sampling"] = {"top_p": 7.0}
            reader, writer = await _say(
                str(listener.address),
                _frame(0, Hello(peer="x")),
                _frame(1, plain),
                _frame(2, GetHealth()),
            )
            got = b""
            while len(_messages(got)) < 3:
                got += await reader.read(1000)
            hello, failure, health = _messages(got)
            assert isinstance(hello, Hello)
            assert isinstance(failure, Failure)
            assert (failure.error.type_name, failure.param) == (InvalidRequest.__name__, "top_p")
            assert isinstance(health, HealthReply)
            writer.close()

    run(scene)


def test_a_silent_connection_is_ended() -> None:
    async def scene() -> None:
        async with listening(RecordingEngineApi(), limits=LinkLimits(greeting_timeout_s=0.05)) as listener:
            reader, writer = await _say(str(listener.address))
            assert await reader.read() == b""
            writer.close()

    run(scene)


def test_a_peer_that_does_not_read_is_cut_and_memory_stays_bounded() -> None:
    async def scene() -> None:
        api = RecordingEngineApi()
        limits = LinkLimits(max_buffered_bytes=1024 * 1024, high_water_bytes=64 * 1024)
        async with listening(api, limits=limits) as listener:
            _, writer = await _say(str(listener.address), _frame(0, Hello(peer="sleeper")))
            writer.transport.pause_reading()
            await until(lambda: bool(api.connections))
            connection = api.connections[0]
            frame = OutputFrame(1, (output("r", tuple(range(70_000, 80_000))),))
            most_bytes = 0
            for _ in range(4000):  # 200 MB, far above what sockets and buffers can hold
                connection.send_outputs(frame)
                most_bytes = max(most_bytes, connection.link.buffered_bytes)
                await asyncio.sleep(0)
                if connection.is_lost:
                    break
            assert connection.is_lost
            assert most_bytes < 2 * 1024 * 1024
            await until(lambda: bool(api.lost))
            assert api.lost[0][0] == "sleeper"
            assert "does not read" in api.lost[0][1]
            writer.close()

    run(scene)


def test_loss_fails_calls_in_flight_at_once_and_is_told_once() -> None:
    async def scene() -> None:
        async with mute_engine(_frame(0, Hello(peer="mute"))) as (address, writers):
            lost: list[InstanceLost] = []
            client = await EngineClient.connect(address, peer="edge", on_lost=lost.append)
            calls = [asyncio.ensure_future(client.health(deadline_s=200)) for _ in range(3)]
            await asyncio.sleep(0.05)
            writers[0].transport.abort()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [InstanceLost] * 3
            assert len(lost) == 1
            assert client.is_lost
            with pytest.raises(InstanceLost):
                await client.health()

    run(scene)


def test_a_call_without_answer_ends_at_its_deadline_and_is_listed_meanwhile() -> None:
    async def scene() -> None:
        async with mute_engine(_frame(0, Hello(peer="mute"))) as (address, _):
            waits = WaitTable()
            client = await EngineClient.connect(address, peer="edge", waits=waits)
            call = asyncio.ensure_future(client.submit(request("a"), deadline_s=0.1))
            await asyncio.sleep(0.02)
            assert [(wait.owner, wait.reason) for wait in waits.snapshot()] == [
                ("rpc to mute", "reply to Submit")
            ]
            with pytest.raises(DeadlineExceeded, match="reply to Submit"):
                await call
            assert waits.snapshot() == []
            await client.close()

    run(scene)


def test_a_server_that_never_greets_is_a_deadline() -> None:
    async def scene() -> None:
        async with mute_engine() as (address, _):
            with pytest.raises(DeadlineExceeded, match="greeting"):
                await EngineClient.connect(address, peer="edge", deadline_s=0.1)

    run(scene)


def test_closing_the_listener_flushes_what_was_sent() -> None:
    async def scene() -> None:
        api = RecordingEngineApi()
        frames: list[OutputFrame] = []
        lost: list[InstanceLost] = []
        async with listening(api) as listener:
            client = await EngineClient.connect(
                str(listener.address), peer="edge", on_outputs=frames.append, on_lost=lost.append
            )
            big = OutputFrame(1, (output("r", tuple(range(70_000, 370_000))),))
            for _ in range(5):
                api.connections[0].send_outputs(big)
            await listener.close("the engine ends")
            await until(lambda: bool(lost))
            assert len(frames) == 5
            await client.close()

    run(scene)


def test_tls_carries_the_same_stream(tmp_path: Path) -> None:
    key, cert = tmp_path / "k.pem", tmp_path / "c.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")

    async def scene() -> None:
        server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server_tls.load_cert_chain(cert, key)
        client_tls = ssl.create_default_context(cafile=str(cert))
        async with listening(RecordingEngineApi(), tls=server_tls) as listener:
            client = await EngineClient.connect(str(listener.address), peer="edge", tls=client_tls)
            assert (await client.health()).state == "ready"
            await client.close()
            with pytest.raises((InstanceLost, DeadlineExceeded)):
                await EngineClient.connect(str(listener.address), peer="edge", deadline_s=1.0)  # no TLS

    run(scene)
