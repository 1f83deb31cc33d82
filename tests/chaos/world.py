"""World: etcd, engines and service replicas as real processes, with a fault proxy on every link.

client -> service-0, service-1 -> [proxy per engine] -> engine-0 ... engine-3
                 engines and services -> [proxy each] -> etcd

With ``netns`` every engine has a network of its own in place of the proxy before it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.namespaces import Namespace
from tests.chaos.processes import Process
from tests.fakes.etcd import Etcd, free_port
from tests.fakes.fault_proxy import FaultProxy
from xllm.config.cluster import RegistryConfig
from xllm.launch.cluster_admin import gather_status
from xllm.perf.step_time import PROFILES
from xllm.types.wire import LoadReply

TOKEN = "chaos"
SETTLE_S = 200.0
CRAWL_FACTOR = 100.0


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """What stands; the same for a timed and a real model."""

    num_engines: int = 4
    num_services: int = 2
    executor: str = "timed"
    """``timed``: a step lasts ``step_s``; ``local``: the demo model itself, float32 and batch-invariant."""
    step_s: float = 0.025
    lease_ttl_s: float = 3.0
    policy: str = "round_robin"
    model: str = "demo"
    forget_after_s: float = 60.0
    """Until a replica forgets a dead engine whose lease has ended."""
    num_trace_records: int = 65_536
    netns: bool = False
    """Engines in network namespaces."""
    crawling: tuple[str, ...] = ()
    """Timed engines whose steps last ``CRAWL_FACTOR`` times as long."""


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = SETTLE_S) -> None:
    """Poll until true."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await condition():
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {timeout_s:g} s") from None


class World:
    """``async with World(directory, options) as world``: up, all engines ready in all replicas."""

    def __init__(self, directory: Path, options: WorldOptions, seed: int = 0) -> None:
        self.options = options
        self.directory = directory
        self.seed = seed
        self.etcd = Etcd(directory)
        self.engines: dict[str, Process] = {}
        self.services: dict[str, Process] = {}
        self.urls: dict[str, str] = {}
        self.engine_links: dict[str, FaultProxy] = {}
        """Between the services and an engine; none with ``netns``."""
        self.networks: dict[str, Namespace] = {}
        """Of each engine, with ``netns``."""
        self.etcd_links: dict[str, FaultProxy] = {}
        """Between a process and etcd."""
        self._stack = AsyncExitStack()
        self._addresses: dict[str, str] = {}

    async def __aenter__(self) -> World:
        try:
            await self._build()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._close()

    @property
    def processes(self) -> dict[str, Process]:
        return {**self.engines, **self.services}

    async def health(self, service: str, timeout_s: float = 2.0) -> dict[str, str] | None:
        """State of every instance as a replica sees it; None: it does not answer."""
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self.session.get(f"{self.urls[service]}/health", timeout=timeout) as response:
                rows = (await response.json())["instances"]
                return {name: row["state"] for name, row in rows.items()}
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def is_whole(self) -> bool:
        """Every replica sees every engine ready."""
        wanted = dict.fromkeys(self.engines, "ready")
        seen = await asyncio.gather(*(self.health(name) for name in self.services))
        return all(states == wanted for states in seen)

    async def engine_loads(self) -> dict[str, LoadReply]:
        """Asked past the proxies."""
        from xllm.rpc.client import EngineClient

        found = {}
        for name in self.engines:
            client = await EngineClient.connect(self._addresses[name], peer="", token=TOKEN)
            try:
                found[name] = await client.load()
            finally:
                await client.close()
        return found

    async def waits(self, service: str) -> list[dict[str, Any]]:
        """What a replica and its engines wait for."""
        async with self.session.get(f"{self.urls[service]}/debug/waits") as response:
            return list((await response.json())["waits"])

    async def metric(self, service: str, name: str) -> float:
        """Sum of a metric's samples; 0 when the replica does not answer."""
        try:
            timeout = aiohttp.ClientTimeout(total=5.0)
            async with self.session.get(f"{self.urls[service]}/metrics", timeout=timeout) as response:
                found = re.findall(rf"^xllm:{name}(?:{{.*}})? (\S+)$", await response.text(), re.MULTILINE)
        except (aiohttp.ClientError, TimeoutError):
            return 0.0
        return sum(map(float, found))

    async def status(self) -> dict[str, list[dict[str, Any]]]:
        """What ``xllm cluster status`` shows, asked past the proxies of etcd."""
        return await gather_status(RegistryConfig(url=f"etcd://{self.etcd.endpoint}"), TOKEN)

    async def start_etcd(self) -> None:
        await asyncio.to_thread(self.etcd.start)

    async def restart(self, name: str) -> None:
        """Start a dead process again and wait until it serves."""
        process = self.processes[name]
        process.start()
        await self._until_ready(name)

    async def _until_ready(self, name: str) -> None:
        process = self.processes[name]
        await process.until("ready at" if name in self.engines else "serving .* at http")
        process.is_ready = True

    # -- private --

    async def _build(self) -> None:
        self.session = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        )
        await self.start_etcd()
        options = self.options
        for number in range(options.num_engines):
            await self._add_engine(f"engine-{number}")
        for number in range(options.num_services):
            await self._add_service(f"service-{number}")
        for process in self.processes.values():
            process.start()
        for name in self.processes:
            await self._until_ready(name)
        await until(self.is_whole, "every replica sees every engine")

    async def _proxy(self, target: str, host: str = "127.0.0.1") -> FaultProxy:
        self.seed += 1
        return await self._stack.enter_async_context(FaultProxy(target, seed=self.seed, host=host))

    async def _registry_flags(self, name: str, host: str = "127.0.0.1") -> tuple[str, ...]:
        link = self.etcd_links[name] = await self._proxy(self.etcd.endpoint, host)
        ttl = f"registry.lease_ttl_s={self.options.lease_ttl_s:g}"
        return "--registry", f"etcd://{link.address}", "--set", ttl

    def executor_flags(self, name: str = "") -> tuple[str, ...]:
        """Of the engine ``name``, or of a guest."""
        if self.options.executor == "local":
            return "--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--batch-invariant"
        is_crawling = name in self.options.crawling
        path = self.directory / ("crawling.json" if is_crawling else "profile.json")
        if not path.exists():  # once: somebody may be reading it
            step_s = self.options.step_s * (CRAWL_FACTOR if is_crawling else 1.0)
            profile = {**asdict(PROFILES["instant"]), "name": "chaos", "overhead_s": step_s}
            path.write_text(json.dumps(profile))
        return "--executor", f"timed:{path}", "--num-threads", "1"

    def _ring(self) -> tuple[str, ...]:
        return "--set", f"server.num_trace_records={self.options.num_trace_records}"

    async def _add_engine(self, name: str) -> None:
        if self.options.netns:
            network = self._stack.enter_context(Namespace(len(self.networks)).made())
            self.networks[name] = network
            address, prefix, outside = f"{network.inner}:{free_port()}", network.prefix, network.outer
            advertised = address
        else:
            address, prefix, outside = f"127.0.0.1:{free_port()}", (), "127.0.0.1"
            link = self.engine_links[name] = await self._proxy(address)
            advertised = link.address
        self._addresses[name] = address
        args = (
            "engine", self.options.model, *self.executor_flags(name), *await self._registry_flags(name, outside),
            "--instance-id", name, "--endpoint", address, "--advertise", advertised,
            "--rpc-token", TOKEN, "--num-gpu-blocks-override", "4096",
            "--set", "server.migrate_after_s=0.5",
            *self._ring(),
        )  # fmt: skip
        self.engines[name] = Process(name, args, self.directory, prefix=prefix)

    async def _add_service(self, name: str) -> None:
        port = free_port()
        self.urls[name] = f"http://127.0.0.1:{port}"
        args = (
            "service", self.options.model, *await self._registry_flags(name), "--port", str(port),
            "--rpc-token", TOKEN, "--routing-policy", self.options.policy,
            "--set", f"cluster.forget_after_s={self.options.forget_after_s:g}", *self._ring(),
        )  # fmt: skip
        self.services[name] = Process(name, args, self.directory)

    async def _close(self) -> None:
        for process in self.processes.values():
            process.destroy()
        if self.etcd.process is not None and self.etcd.process.poll() is None:
            self.etcd.kill()
        await self._stack.aclose()
