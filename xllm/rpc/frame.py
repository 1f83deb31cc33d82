"""Frames: 4-byte body length, 4-byte call id (both big-endian), body. Call id 0 means: nobody asked."""

from __future__ import annotations

import struct

from xllm.errors import ProtocolError

HEADER = struct.Struct(">II")
MAX_CALL_ID = 2**32 - 1


class FrameReader:
    """Cuts a byte stream into frames.

    INVARIANT: ``_pending`` holds less than one whole frame, and at most ``max_frame_bytes`` plus one read.
    """

    __slots__ = ("_needed_bytes", "_pending", "max_frame_bytes")

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._pending = bytearray()
        self._needed_bytes = HEADER.size

    def feed(self, data: bytes) -> list[tuple[int, memoryview]]:
        """Every frame completed by ``data`` as (call id, body); the body is valid until it is dropped.

        Raises:
            ProtocolError: a frame announces more than ``max_frame_bytes``.
        """
        chunk: bytes | bytearray = data
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed_bytes:
                return []
            chunk, self._pending = self._pending, bytearray()
        frames = []
        view = memoryview(chunk)
        start, end = 0, len(chunk)
        self._needed_bytes = HEADER.size
        while end - start >= HEADER.size:
            num_bytes, call_id = HEADER.unpack_from(chunk, start)
            if num_bytes > self.max_frame_bytes:
                raise ProtocolError(
                    f"a frame of {num_bytes} bytes was announced, the limit is {self.max_frame_bytes} bytes"
                )
            body = start + HEADER.size
            if end - body < num_bytes:
                self._needed_bytes = HEADER.size + num_bytes
                break
            frames.append((call_id, view[body : body + num_bytes]))
            start = body + num_bytes
        self._pending += view[start:]
        return frames
