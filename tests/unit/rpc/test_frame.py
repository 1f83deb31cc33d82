from __future__ import annotations

import random

import pytest

from xllm.errors import ProtocolError
from xllm.rpc.frame import HEADER, FrameReader


def _frame(call_id: int, body: bytes) -> bytes:
    return HEADER.pack(len(body), call_id) + body


@pytest.mark.parametrize("piece", [1, 2, 7, 8, 9, 100, 10_000])
def test_frames_survive_any_cut_of_the_stream(piece: int) -> None:
    rng = random.Random(piece)
    sent = [(rng.randrange(2**32), rng.randbytes(rng.choice([0, 1, 8, 300, 5000]))) for _ in range(50)]
    stream = b"".join(_frame(call_id, body) for call_id, body in sent)
    reader = FrameReader(max_frame_bytes=5000)
    got = []
    for at in range(0, len(stream), piece):
        got += [(call_id, bytes(body)) for call_id, body in reader.feed(stream[at : at + piece])]
    assert got == sent


def test_a_frame_above_the_limit_is_refused_from_its_header_alone() -> None:
    reader = FrameReader(max_frame_bytes=100)
    assert [bytes(body) for _, body in reader.feed(_frame(1, b"x" * 100))] == [b"x" * 100]
    with pytest.raises(ProtocolError, match="101 bytes"):
        reader.feed(HEADER.pack(101, 1))
