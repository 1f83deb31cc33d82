"""What only etcd can do to its client: restart, compaction, logins, dead and lying endpoints."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes.etcd import Etcd, free_port
from tests.fakes.scenes import run
from xllm.errors import Compacted, RegistryError
from xllm.registry.etcd import EtcdStore
from xllm.types.store import StoreEvent


@asynccontextmanager
async def client(*endpoints: str, **options: Any) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, **{"timeout_s": 30.0, **options})
    try:
        yield store
    finally:
        await store.close()


async def first(store: EtcdStore, prefix: str, after: int) -> StoreEvent:
    async with aclosing(store.watch(prefix, after)) as batches:
        async for batch in batches:
            return batch[0]
    raise AssertionError("the watch ended without a word")


async def when_up(call: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await call()
        except RegistryError:
            await asyncio.sleep(0.05)


def test_a_killed_etcd_is_an_error_in_time_and_its_return_is_noticed(tmp_path: Path) -> None:
    async def scene(etcd: Etcd) -> None:
        async with client(etcd.endpoint) as store:
            lease = await store.grant_lease(60.0)
            revision = await store.put("k", b"1", lease=lease.id)
            watching = asyncio.ensure_future(first(store, "k", revision))
            await asyncio.sleep(0.1)
            etcd.kill()
            with pytest.raises(RegistryError):
                await watching
            began = time.monotonic()
            with pytest.raises(RegistryError):
                await store.put("k", b"2")
            assert time.monotonic() - began < 100
            await asyncio.to_thread(etcd.start)
            await when_up(lambda: store.put("k", b"3", lease=lease.id))
            assert (await first(store, "k", revision)).item.value == b"3"
            assert (await store.keep_alive(lease.id)).ttl_s == 60.0

    with Etcd(tmp_path) as etcd:
        run(lambda: scene(etcd))


def test_compaction_is_said(tmp_path: Path) -> None:
    async def scene(etcd: Etcd) -> None:
        async with client(etcd.endpoint) as store:
            start = await store.put("k", b"0")
            for number in range(5):
                last = await store.put("k", str(number).encode())
            await store._ask("/v3/kv/compaction", {"revision": str(last)})
            with pytest.raises(Compacted):
                await first(store, "k", start)
            assert (await first(store, "k", last - 1)).item.value == b"4"

    with Etcd(tmp_path) as etcd:
        run(lambda: scene(etcd))


def test_a_login_is_needed_found_wrong_and_renewed(tmp_path: Path) -> None:
    async def scene(etcd: Etcd) -> None:
        async with client(etcd.endpoint) as store:
            await store._ask("/v3/auth/user/add", {"name": "root", "password": "secret"})
            await store._ask("/v3/auth/role/add", {"name": "root"})
            await store._ask("/v3/auth/user/grant", {"user": "root", "role": "root"})
            await store._ask("/v3/auth/enable", {})
            with pytest.raises(RegistryError):
                await store.put("k", b"1")
        async with client(etcd.endpoint, user="root", password="wrong") as store:
            with pytest.raises(RegistryError) as caught:
                await store.put("k", b"1")
            assert "wrong" not in str(caught.value)
        async with client(etcd.endpoint, user="root", password="secret") as store:
            revision = await store.put("k", b"1")
            store._token = "stale.1"
            await store.put("k", b"2")
            assert (await first(store, "k", revision)).item.value == b"2"

    with Etcd(tmp_path) as etcd:
        run(lambda: scene(etcd))


def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip

    async def scene(etcd: Etcd) -> None:
        async with client(etcd.endpoint, tls=ssl.create_default_context(cafile=str(cert))) as store:
            await when_up(lambda: store.put("k", b"1"))
            assert (await store.get_prefix("k")).items[0].value == b"1"
        async with client(etcd.endpoint, tls=ssl.create_default_context()) as store:
            with pytest.raises(RegistryError):
                await store.get_prefix("k")

    with Etcd(tmp_path, "--cert-file", str(cert), "--key-file", str(key), scheme="https") as etcd:
        run(lambda: scene(etcd))


def test_dead_and_silent_endpoints_are_passed_over(tmp_path: Path) -> None:
    async def scene(etcd: Etcd) -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        endpoints = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}", etcd.endpoint)
        async with client(*endpoints, timeout_s=15.0) as store:
            await store.put("k", b"1")
            assert await store.try_set("k", b"2", expected_revision=0) is None
        silent.close()

    with Etcd(tmp_path) as etcd:
        run(lambda: scene(etcd))


@pytest.mark.parametrize(
    "answer",
    [
        "", "{", "[]", "null", '{"header": 1}', '{"header": {"revision": "x"}, "ID": {}, "kvs": 3}',
        '{"header": {"revision": "1"}, "kvs": [{"key": "*"}], "result": {"TTL": "x", "events": 1}}',
        '{"header": {"revision": "1"}, "kvs": [7], "result": {"TTL": [], "events": [{"kv": 1}]}}',
        '{"result": {"events": [{"type": "ODD", "kv": {"key": "aw==", "mod_revision": "1"}}]}}',
        '{"error": "etcdserver: no", "code": 2}', "x" * 200_000, '{"header": ' + "[" * 100_000,
        '{"header": {"revision": 1e999}, "ID": 1e999, "TTL": 1e999, "result": {"TTL": -1e999, "events": []}}',
        '{"header": {"revision": "%s"}, "ID": "1", "TTL": "%s", "result": {"TTL": "%s"}}' % (3 * ("9" * 400,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [200, 500])
def test_whatever_it_answers_only_a_registry_error_comes_out(answer: str, status: int) -> None:
    async def lie(request: web.Request) -> web.Response:
        return web.Response(text=answer + "\n", status=status, content_type="application/json")

    async def scene() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", lie)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        async with client(f"127.0.0.1:{port}") as store:
            for call in (
                lambda: store.put("k", b"1"),
                lambda: store.get_prefix("k"),
                lambda: store.grant_lease(1.0),
                lambda: store.keep_alive(1),
                lambda: first(store, "k", 0),
            ):
                try:
                    await call()
                except RegistryError:
                    continue
        await runner.cleanup()

    run(scene)


def test_an_endpoint_that_never_answers_ends_in_time() -> None:
    async def scene() -> None:
        silent = socket.create_server(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        async with client(f"127.0.0.1:{port}", timeout_s=0.3) as store:
            with pytest.raises(RegistryError):
                await store.put("k", b"1")
            with pytest.raises(RegistryError):
                await store.try_set("k", b"1", expected_revision=0)
            with pytest.raises(RegistryError):
                await first(store, "k", 0)
        silent.close()

    run(scene)
