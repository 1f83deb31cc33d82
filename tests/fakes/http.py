"""A plain HTTP client: any status is an answer, events of a stream are parsed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


def ask(
    url: str,
    body: Any = None,
    *,
    raw: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str = "",
) -> Reply:
    """One request; any status is an answer."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json", **(headers or {})}
    verb = method or ("POST" if data is not None else "GET")
    request = urllib.request.Request(url, data, head, method=verb)
    try:
        with urllib.request.urlopen(request, timeout=100) as response:
            return Reply(response.status, dict(response.headers), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, dict(error.headers), error.read())


def events(raw: bytes) -> list[tuple[str | None, Any]]:
    """(id, data) of every event of a stream; data is parsed, but for [DONE]."""
    found = []
    for block in raw.decode().split("\n\n"):
        if not block:
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        data = fields["data"]
        found.append((fields.get("id"), data if data == "[DONE]" else json.loads(data)))
    return found
