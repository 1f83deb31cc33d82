"""EtcdStore: etcd's v3 API through its JSON gateway, over aiohttp.

INVARIANTS
- Every call ends within ``timeout_s``, over all endpoints together; a watch ends when its connection does.
- A compare-and-set is sent at most once: when the answer is lost the caller reads, then decides.
- Whatever etcd or something in its place answers, only RegistryError leaves this file.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp

from xllm.errors import Compacted, LeaseExpired, RegistryError
from xllm.registry.store import Watch, check_key, check_ttl, check_value
from xllm.types.store import Lease, Snapshot, StoreEvent, StoreItem

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_NOT_FOUND, _UNAUTHENTICATED = 5, 16
_DEADLINE, _UNAVAILABLE = 4, 14
_SOFT_CODES = (_DEADLINE, _UNAVAILABLE)
"""Codes of gRPC for which another endpoint may do better."""

_LOOK = "requests go on without it; see with etcdctl endpoint status whether it is overloaded or down"
_REFUSED = "when it lacks a permission: the user of --registry-user needs read and write on the prefix of the namespace"
_NOT_ETCD = (
    "is --registry the client address of an etcd 3.4 or later, and nothing in between changes its answers?"
)

Json = Mapping[str, Any]


class EtcdStore:
    """See :class:`~xllm.registry.store.Store`. Made inside a running event loop."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        user: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 3.0,
    ) -> None:
        """``endpoints`` are ``host:port``; with ``tls`` they are spoken to over https."""
        assert endpoints
        scheme = "https" if tls else "http"
        self._bases = [f"{scheme}://{endpoint}" for endpoint in endpoints]
        self._current = 0
        self._login = {"name": user, "password": password} if user else None
        self._token = ""
        self._timeout_s = timeout_s
        connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
        self._session = aiohttp.ClientSession(connector=connector)
        self._watches: set[aiohttp.ClientResponse] = set()

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key."""
        check_key(key)
        check_value(value)
        answer = await self._ask("/v3/kv/put", {"key": _b64(key), "value": _b64(value), "lease": str(lease)})
        return _revision(answer)

    async def try_set(
        self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0
    ) -> int | None:
        """Compare-and-set."""
        check_key(key)
        check_value(value)
        name = _b64(key)
        condition = {"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": str(expected_revision)}
        if value is None:
            order: Json = {"request_delete_range": {"key": name}}
        else:
            order = {"request_put": {"key": name, "value": _b64(value), "lease": str(lease)}}
        answer = await self._ask(
            "/v3/kv/txn", {"compare": [condition], "success": [order]}, is_repeatable=False
        )
        return _revision(answer) if answer.get("succeeded") else None

    async def get_prefix(self, prefix: str) -> Snapshot:
        """Every key under ``prefix``."""
        answer = await self._ask(
            "/v3/kv/range", _range(prefix) | {"sort_target": "KEY", "sort_order": "ASCEND"}
        )
        items = tuple(_item(kv) for kv in _list(answer, "kvs"))
        return Snapshot(revision=_revision(answer), items=items)

    async def watch(self, prefix: str, after_revision: int) -> Watch:
        """Every later change under ``prefix``."""
        create = _range(prefix) | {"start_revision": str(after_revision + 1)}
        stream = self._stream("/v3/watch", {"create_request": create})
        async with aclosing(stream):
            async for line in stream:
                events = _watched(line, after_revision)
                if events:
                    yield events
        raise RegistryError("etcd closed the watch", hint=_LOOK)

    async def grant_lease(self, ttl_s: float) -> Lease:
        """A new lease of whole seconds, at least what was asked."""
        check_ttl(ttl_s)
        answer = await self._ask("/v3/lease/grant", {"TTL": str(int(-(-ttl_s // 1)))})
        return Lease(id=_int(answer, "ID"), ttl_s=float(_int(answer, "TTL")))

    async def keep_alive(self, lease: int) -> Lease:
        """Begin the lease's time anew; etcd answers for a lease that is gone with a time of 0."""
        answer = await self._ask("/v3/lease/keepalive", {"ID": str(lease)})
        result = answer.get("result")
        if not isinstance(result, dict):
            raise _hard(_error_of(answer))
        ttl_s = float(_int({"TTL": 0, **result}, "TTL"))
        if ttl_s <= 0:
            raise LeaseExpired(f"lease {lease:x} is gone", hint="grant a new one and write its keys again")
        return Lease(id=lease, ttl_s=ttl_s)

    async def revoke_lease(self, lease: int) -> None:
        """End a lease."""
        try:
            await self._ask("/v3/lease/revoke", {"ID": str(lease)})
        except LeaseExpired:
            return

    async def close(self) -> None:
        """Close every connection."""
        for response in self._watches:
            response.content.set_exception(aiohttp.ClientConnectionError("closed by us"))
        await self._session.close()

    # -- private --

    async def _ask(self, path: str, body: Json, *, is_repeatable: bool = True) -> Json:
        """One call; another endpoint is tried where that is harmless."""
        self._check_open()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask_any(path, body, is_repeatable)
        except TimeoutError as exc:
            self._turn()
            raise RegistryError(
                f"etcd did not answer {path} within {self._timeout_s:g} s", hint=_LOOK
            ) from exc

    async def _ask_any(self, path: str, body: Json, is_repeatable: bool) -> Json:
        problems = []
        for _ in range(len(self._bases) + 1):  # one more: a token may have to be renewed
            base = self._bases[self._current]
            try:
                # A share of the time each, so that a silent endpoint leaves some for the others.
                async with asyncio.timeout(self._timeout_s / len(self._bases)):
                    return await self._ask_one(base, path, body)
            except aiohttp.ClientConnectorError as exc:
                problems.append(f"{base}: {exc.strerror or exc}")
            except _Stale:
                self._token = ""
                continue
            except (aiohttp.ClientError, TimeoutError, _Soft) as exc:
                problems.append(f"{base}: {type(exc).__name__} {exc}")
                if not is_repeatable:
                    self._turn()
                    break
            self._turn()
        if not problems:
            raise RegistryError(
                "etcd cannot be reached (the login is refused)",
                hint="compare --registry-user and --registry-password with etcdctl user list",
            )
        raise RegistryError(
            f"etcd cannot be reached ({'; '.join(problems)})",
            hint="compare --registry with etcd's --advertise-client-urls, and http or https with --registry-ca",
        )

    async def _ask_one(self, base: str, path: str, body: Json) -> Json:
        headers = await self._headers(base)
        async with self._session.post(base + path, json=body, headers=headers) as response:
            return _checked(response.status, await _read_all(response))

    async def _headers(self, base: str) -> dict[str, str]:
        if self._login is None:
            return {}
        if not self._token:
            async with self._session.post(base + "/v3/auth/authenticate", json=self._login) as response:
                answer = _checked(response.status, await _read_all(response))
            token = answer.get("token")
            if not isinstance(token, str) or not token:
                raise RegistryError(
                    "etcd gave no token for the login",
                    hint="etcdctl auth enable, or leave --registry-user out",
                )
            self._token = token
        return {"Authorization": self._token}

    async def _stream(self, path: str, body: Json) -> AsyncGenerator[Json, None]:
        """Answers that come line by line on one connection."""
        self._check_open()
        base = self._bases[self._current]
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                headers = await self._headers(base)
                response = await self._session.post(base + path, json=body, headers=headers, timeout=timeout)
            self._watches.add(response)
            try:
                pending = bytearray()
                async for chunk in response.content.iter_any():
                    pending += chunk
                    while (end := pending.find(b"\n")) >= 0:
                        yield _parse(bytes(pending[:end]))
                        del pending[: end + 1]
                    if len(pending) > MAX_ANSWER_BYTES:
                        raise _nonsense(f"etcd sent a line of more than {MAX_ANSWER_BYTES} bytes")
            finally:
                self._watches.discard(response)
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            self._turn()
            raise RegistryError(f"the watch of {base} broke: {type(exc).__name__} {exc}", hint=_LOOK) from exc
        except (_Stale, _Soft) as exc:
            self._token = ""
            raise RegistryError(f"etcd refused the watch: {exc}", hint=_LOOK) from exc

    def _check_open(self) -> None:
        if self._session.closed:
            raise RegistryError("the client of etcd is closed")

    def _turn(self) -> None:
        self._current = (self._current + 1) % len(self._bases)


class _Stale(Exception):
    """The login's token is not valid any more."""


class _Soft(Exception):
    """This endpoint cannot do it now."""


async def _read_all(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise _nonsense(f"etcd sent more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _checked(status: int, body: bytes) -> Json:
    if status == 200:
        return _parse(body)
    raise _error_of(_parse(body) if body.lstrip().startswith(b"{") else {"message": f"HTTP status {status}"})


def _error_of(answer: Json) -> Exception:
    error = answer.get("error")
    detail: Json = error if isinstance(error, dict) else answer
    code = detail.get("grpc_code", detail.get("code", 0))
    text = str(detail.get("message") or error or "an answer without meaning")[:500]
    if code == _NOT_FOUND and "lease" in text:
        return LeaseExpired(text, hint="grant a new one and write its keys again")
    if code == _UNAUTHENTICATED:
        return _Stale(text)
    if code in _SOFT_CODES or "leader" in text:
        return _Soft(text)
    return RegistryError(f"etcd refused: {text}", hint=_REFUSED)


def _hard(error: Exception) -> RegistryError:
    return error if isinstance(error, RegistryError) else RegistryError(f"etcd refused: {error}", hint=_LOOK)


def _watched(line: Json, after_revision: int) -> tuple[StoreEvent, ...]:
    """Events of one line of a watch."""
    result = line.get("result")
    if not isinstance(result, dict):
        raise _hard(_error_of(line))
    compacted = _int({"compact_revision": 0, **result}, "compact_revision")
    if compacted:
        raise Compacted(
            f"events after revision {after_revision} are not kept (compacted at {compacted})",
            hint="list again, then watch from there",
        )
    if result.get("canceled"):
        reason = result.get("cancel_reason", "no reason given")
        raise RegistryError(f"etcd ended the watch: {reason}", hint=_REFUSED)
    return tuple(_event(event) for event in _list(result, "events"))


def _parse(body: bytes) -> Json:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _nonsense(f"etcd sent no JSON: {body[:80]!r}") from exc
    if not isinstance(found, dict):
        raise _nonsense(f"etcd sent no object: {body[:80]!r}")
    return found


def _nonsense(message: str) -> RegistryError:
    return RegistryError(message, hint=_NOT_ETCD)


def _b64(value: str | bytes) -> str:
    return b64encode(value.encode() if isinstance(value, str) else value).decode()


def _range(prefix: str) -> dict[str, str]:
    first = prefix.encode()
    stem = first.rstrip(b"\xff")
    last = stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
    return {"key": _b64(first or b"\0"), "range_end": _b64(last)}


def _int(answer: Json, name: str) -> int:
    try:
        value = int(answer[name])
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise _nonsense(f"etcd's answer has no {name}") from exc
    if not -(2**63) <= value < 2**64:
        raise _nonsense(f"etcd's answer has a {name} beyond 64 bits")
    return value


def _list(answer: Json, name: str) -> list[Json]:
    found = answer.get(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise _nonsense(f"etcd's answer has no list {name}")
    return found


def _revision(answer: Json) -> int:
    header = answer.get("header")
    return _int(header if isinstance(header, dict) else {}, "revision")


def _item(kv: Json) -> StoreItem:
    try:
        key = b64decode(kv["key"], validate=True).decode()
        value = b64decode(kv.get("value", ""), validate=True)
    except (KeyError, TypeError, ValueError) as exc:
        raise _nonsense("etcd sent a key or value that cannot be read") from exc
    return StoreItem(
        key=key, value=value, revision=_int(kv, "mod_revision"), lease=_int({"lease": 0, **kv}, "lease")
    )


def _event(event: Json) -> StoreEvent:
    kv = event.get("kv")
    if not isinstance(kv, dict):
        raise _nonsense("etcd sent an event without a key")
    kind = event.get("type", "PUT")
    if kind not in ("PUT", "DELETE"):
        raise _nonsense(f"etcd sent an event of kind {kind!r}")
    return StoreEvent(kind="delete" if kind == "DELETE" else "put", item=_item(kv))
