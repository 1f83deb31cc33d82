"""A polled HTTP server in one thread, for engines whose step keeps Python's lock.

Between two steps `poll` takes whatever has arrived in one go: a connection, its head and its body. Standard
library only: this runs in the environments of the peers. Text is the token's vocabulary entry, so nothing
is spent on detokenizing.
"""

from __future__ import annotations

import json
import selectors
import socket
from dataclasses import dataclass, field
from pathlib import Path

_MAX_REQUEST_BYTES = 4 << 20
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass(eq=False)
class Request:
    """One completion; ``is_open`` is False once the client has gone."""

    connection: socket.socket
    prompt: list[int]
    max_tokens: int
    num_sent: int = 0
    is_open: bool = True
    waiting: bytearray = field(default_factory=bytearray)


class ShimServer:
    """``poll`` for requests, ``send`` tokens, ``finish``."""

    def __init__(self, port: int, model: str) -> None:
        self._texts = _token_texts(Path(model) / "tokenizer.json")
        self._partial: dict[socket.socket, bytearray] = {}
        self._requests: dict[socket.socket, Request] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)

    def poll(self, timeout_s: float | None = 0.0) -> list[Request]:
        """Requests that are complete by now; waits up to ``timeout_s`` for anything to happen."""
        arrived: list[Request] = []
        while events := self._selector.select(timeout_s):
            timeout_s = 0.0
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    arrived += self._read(key.fileobj)
        for request in self._requests.values():
            self._flush(request)
        return arrived

    def send(self, request: Request, tokens: list[int]) -> None:
        """One event per call."""
        request.num_sent += len(tokens)
        text = "".join(self._texts.get(token, "?") for token in tokens)
        self._write(request, {"choices": [{"index": 0, "text": text, "finish_reason": None}]})

    def finish(self, request: Request, reason: str = "length") -> None:
        """Usage, end of stream."""
        usage = {"prompt_tokens": len(request.prompt), "completion_tokens": request.num_sent}
        choices = [{"index": 0, "text": "", "finish_reason": reason}]
        self._write(request, {"choices": choices, "usage": usage})
        request.waiting += b"data: [DONE]\n\n"
        self._flush(request)
        if request.waiting and request.is_open:
            request.connection.settimeout(5.0)
            request.connection.sendall(request.waiting)
        self._close(request.connection)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._partial[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> list[Request]:
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        buffer = self._partial.get(connection)
        if not data or buffer is None or len(buffer) > _MAX_REQUEST_BYTES:
            self._close(connection)
            return []
        buffer += data
        head, separator, body = bytes(buffer).partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return []
        return self._begin(connection, head, body)

    def _begin(self, connection: socket.socket, head: bytes, body: bytes) -> list[Request]:
        if not head.startswith(b"POST /v1/completions "):
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self._close(connection)
            return []
        fields = json.loads(body)
        request = Request(connection, fields["prompt"], fields["max_tokens"])
        self._requests[connection] = request
        request.waiting += _HEAD
        return [request]

    def _write(self, request: Request, event: dict[str, object]) -> None:
        request.waiting += b"data: " + json.dumps(event).encode() + b"\n\n"
        self._flush(request)

    def _flush(self, request: Request) -> None:
        if not request.is_open or not request.waiting:
            return
        try:
            del request.waiting[: request.connection.send(request.waiting)]
        except BlockingIOError:
            return
        except ConnectionError:
            request.is_open = False

    def _close(self, connection: socket.socket) -> None:
        self._partial.pop(connection, None)
        request = self._requests.pop(connection, None)
        if request is not None:
            request.is_open = False
        self._selector.unregister(connection)
        connection.close()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def _token_texts(path: Path) -> dict[int, str]:
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    return {token: text for text, token in tokenizer["model"]["vocab"].items()}
