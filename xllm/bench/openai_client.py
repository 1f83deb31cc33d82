"""OpenAIClient: a small asyncio client for any OpenAI-compatible server.

INVARIANTS
- Every wait has a deadline: connecting `connect_timeout_s`, a request `timeout_s`.
- A stream that ends without `[DONE]` or carries an error event raises; it never looks like a short answer.
- Leaving a stream early (cancellation included) closes its connection, which is how a server learns of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from xllm.errors import (
    CapacityError,
    DeadlineExceeded,
    InstanceError,
    InstanceLost,
    InvalidRequest,
    NotFound,
    ProtocolError,
    Unauthorized,
    XllmError,
)

_MAX_LINE_BYTES = 16 * 2**20


class SseParser:
    """Bytes in, `data` payloads out, for any chunking (the event-stream format of the HTML standard)."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Payloads that this chunk completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            raise ProtocolError(f"the server sent a line above {_MAX_LINE_BYTES} bytes")
        events: list[str] = []
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if not line:
                if self._data:
                    events.append("\n".join(self._data))
                    self._data = []
            elif line.startswith("data:"):
                self._data.append(line[5:].removeprefix(" "))
        return events


class OpenAIClient:
    """One connection pool to one server. Use as ``async with``."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 6 * 3600.0,
        connect_timeout_s: float = 30.0,
    ) -> None:
        """``base_url`` is the server's root; a trailing ``/v1`` is understood and dropped."""
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> OpenAIClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=self._timeout,
            headers=self._headers,
            read_bufsize=2**20,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get_json(self, path: str) -> dict[str, Any]:
        """GET a JSON object."""
        async with self._request("GET", path) as response:
            return await _json_object(response)

    async def post_json(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST a JSON object, get one back."""
        async with self._request("POST", path, body) as response:
            return await _json_object(response)

    async def get_status(self, path: str, *, timeout_s: float = 5.0) -> int | None:
        """HTTP status of a GET, or None when nothing answers in time."""
        assert self._session is not None, "use 'async with OpenAIClient(...)'"
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._session.get(self.base_url + path, timeout=timeout) as response:
                return response.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def first_model(self) -> dict[str, Any]:
        """The first entry of /v1/models."""
        models = (await self.get_json("/v1/models")).get("data") or []
        if not models or not isinstance(models[0], dict) or "id" not in models[0]:
            raise ProtocolError(f"{self.base_url}/v1/models lists no model", hint="pass --model")
        return dict(models[0])

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """POST and yield every JSON event of the SSE answer, up to ``[DONE]``.

        A reader that may leave early wraps it in ``contextlib.aclosing``.
        """
        async with self._request("POST", path, body) as response:
            parser = SseParser()
            async for chunk in response.content.iter_any():
                for data in parser.feed(chunk):
                    if data == "[DONE]":
                        return
                    yield _check_event(data)
            raise InstanceLost("the stream ended before [DONE]", hint="look at the server's log")

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "use 'async with OpenAIClient(...)'"
        url = self.base_url + path
        try:
            async with self._session.request(method, url, json=body) as response:
                if response.status != 200:
                    raise _error_of(response, await response.text(errors="replace"))
                yield response
        except aiohttp.ClientConnectorError as exc:
            raise InstanceLost(f"cannot connect to {url}: {exc}", hint="is the server running?") from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise InstanceLost(f"connection to {url} failed: {type(exc).__name__}: {exc}") from exc
        except TimeoutError as exc:
            raise DeadlineExceeded(f"{method} {url} passed its deadline") from exc


async def _json_object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        value = json.loads(await response.read())
    except ValueError as exc:
        raise ProtocolError(f"{response.url} did not answer with JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ProtocolError(f"{response.url}: expected a JSON object")
    return value


def _check_event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as exc:
        raise ProtocolError(f"the stream carried {data[:200]!r}, which is not JSON") from exc
    if not isinstance(event, dict):
        raise ProtocolError(f"the stream carried {data[:200]!r}, which is not an object")
    if event.get("error") or event.get("object") == "error":
        raise InstanceError(f"error in the stream: {_message_of(event)}")
    return event


def _message_of(body: object) -> str:
    """Text of an error body, nested (OpenAI) or flat."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message", error))
    return str(error)


def _error_of(response: aiohttp.ClientResponse, text: str) -> XllmError:
    try:
        message = _message_of(json.loads(text))
    except ValueError:
        message = text[:500]
    message = f"HTTP {response.status} from {response.url.path}: {message}"
    if response.status == 401:
        return Unauthorized(message, hint="pass --api-key or set OPENAI_API_KEY")
    if response.status == 404:
        return NotFound(message)
    if response.status == 429:
        after = response.headers.get("Retry-After", "1")
        return CapacityError(message, retry_after_s=float(after) if after.isdigit() else 1.0)
    if 400 <= response.status < 500:
        return InvalidRequest(message)
    return InstanceError(message)
