"""Messages <-> bodies for one side of one protocol. A protocol is a pair of unions of tagged structs."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from xllm.errors import ProtocolError
from xllm.rpc.frame import HEADER, MAX_CALL_ID
from xllm.types.wire import FromEngine, ToEngine

In = TypeVar("In")
Out = TypeVar("Out")


class Codec(Generic[In, Out]):
    """Encodes ``Out`` messages into frames and decodes bodies into ``In`` messages, nothing else."""

    __slots__ = ("_decoder", "_encoder")

    def __init__(self, incoming: Any) -> None:
        """``incoming`` is the union that ``In`` names; a type alias cannot be asked for it at run time."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)

    def append_frame(self, buffer: bytearray, call_id: int, message: Out, max_frame_bytes: int) -> None:
        """Append one frame to ``buffer``; on error the buffer is as before.

        Raises:
            ProtocolError: the frame would exceed ``max_frame_bytes``, or a value does not fit msgpack.
        """
        start = len(buffer)
        buffer += b"\0" * HEADER.size
        try:
            self._encoder.encode_into(message, buffer, -1)
        except (TypeError, ValueError, OverflowError) as exc:
            del buffer[start:]
            raise ProtocolError(f"{type(message).__name__} cannot be encoded: {exc}") from exc
        num_bytes = len(buffer) - start - HEADER.size
        if num_bytes > max_frame_bytes:
            del buffer[start:]
            raise ProtocolError(
                f"{type(message).__name__} needs {num_bytes} bytes, the limit of a frame is {max_frame_bytes}"
            )
        HEADER.pack_into(buffer, start, num_bytes, call_id & MAX_CALL_ID)

    def decode(self, body: memoryview) -> In:
        """Read one message.

        Raises:
            ProtocolError: the body is no message of the protocol.
            RequestError: it is one, but a value in it is refused by its type (e.g. sampling parameters).
        """
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError) as exc:
            raise ProtocolError(f"malformed message: {exc}") from exc


ServiceSide = Codec[FromEngine, ToEngine]
EngineSide = Codec[ToEngine, FromEngine]


def build_service_codec() -> ServiceSide:
    """The codec of an engine's client."""
    return Codec(FromEngine)


def build_engine_codec() -> EngineSide:
    """The codec of an engine."""
    return Codec(ToEngine)
