"""Bytes of a body -> struct. Every failure is a 4xx that says where; nothing a client sends can raise anything else."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from xllm.api.fields import unknown_field
from xllm.api.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from xllm.errors import InvalidRequest, PayloadTooLarge

T = TypeVar("T", bound=msgspec.Struct)

_DECODERS: dict[type[Any], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
}
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `(.*)`)?$", re.DOTALL)
_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


async def read_body(http: HttpRequest, max_bytes: int) -> bytes:
    """The whole body, refused as soon as it is known to be larger than ``max_bytes``.

    Raises:
        PayloadTooLarge: more than ``max_bytes``, announced or sent.
        InvalidRequest: the client went away, or Content-Length is no number.
    """
    announced = http.headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in http.stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            chunks.append(chunk)
    except ClientDisconnect as exc:
        raise InvalidRequest("the client closed the connection before the body was complete") from exc
    return b"".join(chunks)


def decode_body(body: bytes, kind: type[T]) -> T:
    """Decode and check types.

    Raises:
        InvalidRequest: not JSON, a wrong type, a missing or unknown field; ``param`` names it.
    """
    try:
        value: T = _DECODERS[kind].decode(body)
        return value
    except msgspec.ValidationError as exc:
        raise _explain(str(exc), kind) from exc
    except msgspec.DecodeError as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}", hint="send a JSON object") from exc
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the body is not valid UTF-8: {exc.reason}", hint="send UTF-8") from exc
    except RecursionError as exc:
        raise InvalidRequest(
            "the body is nested too deeply", hint="send at most some hundred levels"
        ) from exc


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes", hint="raise api.max_body_bytes")


def _explain(message: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    if unknown := _UNKNOWN.match(message):
        at = _path(unknown[2])
        known = kind.__struct_fields__ if not at else ()
        return unknown_field(unknown[1], known, f" in {at}" if at else "")
    if missing := _MISSING.match(message):
        at = _path(missing[2])
        name = f"{at}.{missing[1]}" if at else missing[1]
        return InvalidRequest(f"field {name!r} is missing", param=name)
    found = _AT.search(message)
    name = found[1] if found else ""
    text = message[: found.start()] if found else message
    return InvalidRequest(
        f"{name or 'the body'}: {text}".replace("`", "'"),
        hint="/docs says of what type every field is",
        param=name or None,
    )


def _path(raw: str | None) -> str:
    return (raw or "").removeprefix("$").removeprefix(".")
