from __future__ import annotations

import random

import msgspec
import pytest

from xllm.errors import InvalidRequest, ProtocolError
from xllm.rpc.codec import build_engine_codec, build_service_codec
from xllm.rpc.frame import HEADER, FrameReader
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams
from xllm.types.wire import Ack, Submit


def _decode_one(buffer: bytes | bytearray) -> memoryview:
    ((_, body),) = FrameReader(10**6).feed(bytes(buffer))
    return body


def test_a_request_travels_unchanged() -> None:
    request = Request(
        id="r",
        prompt_token_ids=(1, 2, 2**31),
        seed=2**63 - 1,
        sampling=SamplingParams(logit_bias={5: -100.0}, n=3),
    )
    buffer = bytearray(b"before")
    build_service_codec().append_frame(buffer, 7, Submit(request=request), 10**6)
    assert buffer[:6] == b"before"
    assert build_engine_codec().decode(_decode_one(buffer[6:])) == Submit(request=request)


@pytest.mark.parametrize("why", ["too large", "no msgpack"])
def test_a_message_that_cannot_be_sent_leaves_the_buffer_as_it_was(why: str) -> None:
    seed = 2**70 if why == "no msgpack" else 0
    buffer = bytearray(b"before")
    message = Submit(request=Request(id="r" * 500, prompt_token_ids=(), seed=seed))
    with pytest.raises(ProtocolError):
        build_service_codec().append_frame(buffer, 1, message, 100 if why == "too large" else 10**6)
    assert buffer == b"before"


def test_impossible_values_are_a_request_error_not_a_protocol_error() -> None:
    fine = msgspec.msgpack.encode(Submit(request=Request(id="r", prompt_token_ids=(1,), seed=1)))
    plain = msgspec.msgpack.decode(fine)
    plain["request"]["sampling"] = {"temperature": -1.0}
    with pytest.raises(InvalidRequest, match="temperature"):
        build_engine_codec().decode(memoryview(msgspec.msgpack.encode(plain)))


def test_random_bodies_are_protocol_errors() -> None:
    codec = build_engine_codec()
    rng = random.Random(0)
    bombs = [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\xc1",
        b"",
        b"\x81\xa4type\xa3xyz",
    ]
    good = msgspec.msgpack.encode(Submit(request=Request(id="r", prompt_token_ids=(1, 2), seed=1)))
    for _ in range(2000):
        broken = bytearray(good)
        broken[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        bombs.append(bytes(broken[: rng.randrange(len(good) + 1)]))
    refused = 0
    for body in bombs:
        try:
            codec.decode(memoryview(body))
        except (ProtocolError, InvalidRequest):
            refused += 1
    assert refused > 1500  # a flipped bit inside a text or number may still be a message


def test_replies_and_calls_are_different_protocols() -> None:
    buffer = bytearray()
    build_engine_codec().append_frame(buffer, 1, Ack(), 1000)
    with pytest.raises(ProtocolError):
        build_engine_codec().decode(memoryview(buffer)[HEADER.size :])
    assert build_service_codec().decode(memoryview(buffer)[HEADER.size :]) == Ack()
