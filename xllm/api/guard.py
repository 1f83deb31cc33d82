"""The outermost ASGI layer: API keys, response counts, drain. Plain ASGI, so that streams pass through untouched."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xllm.api.errors import error_response
from xllm.api.observe import EdgeMetrics
from xllm.errors import Unauthorized, XllmError
from xllm.types.tenant import key_tenant

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/version", "/openapi.json", "/docs"})
"""Answered without a key: probes, scrapers and the description of the API."""


class KeyRing:
    """The keys that are accepted; compared in constant time, every key every time."""

    __slots__ = ("_admin", "_keys")

    def __init__(self, keys: Sequence[str], admin_key: str | None) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._admin = None if admin_key is None else admin_key.encode()

    def check(self, path: str, header: str | None) -> str:
        """Refuse a request without a key that opens ``path``. The admin key opens everything.

        Returns the tenant the key stands for; "" where keys do not tell tenants apart (none, or one for all).

        Raises:
            Unauthorized: no key, or a wrong one.
        """
        if path in OPEN_PATHS:
            return ""
        is_admin = path.startswith("/debug") and self._admin is not None
        wanted = [self._admin] if is_admin else [*self._keys, *([self._admin] if self._keys else [])]
        accepted = [key for key in wanted if key is not None]
        if not accepted:
            return ""
        scheme, _, given = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise Unauthorized("no API key was given", hint="send the header Authorization: Bearer KEY")
        raw = given.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(raw, key) for key in accepted]
        if not any(matches):
            raise Unauthorized("the API key is wrong", hint="ask the operator for one")
        return key_tenant(raw) if len(self._keys) > 1 else ""


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, keys: KeyRing, metrics: EdgeMetrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key, run the application, count the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            scope["tenant"] = self._keys.check(route_path(scope), _authorization(scope))
        except XllmError as error:
            await error_response(error)(scope, receive, counted_send)
        else:
            await self._app(scope, receive, counted_send)
        finally:
            route = scope.get("route_name", "other")
            self._metrics.saw_response(scope["method"], route, status)


def route_path(scope: Scope) -> str:
    """The path as routes see it: without the prefix of a proxy, which must not decide what a key opens."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _authorization(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            text: str = value.decode("latin-1")
            return text
    return None
