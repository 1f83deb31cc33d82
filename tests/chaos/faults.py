"""How each fault is made, and made good again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from tests.chaos.schedule import Fault
from tests.chaos.world import World

NUM_HOGS = 8
CRAWL_STOPPED_S, CRAWL_RUNNING_S = 0.475, 0.025
"""An engine that crawls runs for a twentieth of the time: a step per turn, and a heartbeat."""


async def last(seconds: float) -> None:
    """Sleep; time in which the machine stood still does not count, since nobody could notice a fault in it."""
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        began_s = time.monotonic()
        await asyncio.sleep(min(left_s, 0.1))
        end_s += max(0.0, time.monotonic() - began_s - 0.5)


class Faults:
    """``strike`` returns when the fault is over and its target works again, or has been started again."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hogs: list[subprocess.Popen[bytes]] = []

    async def strike(
        self, fault: Fault, on_struck: Callable[[], None], on_healed: Callable[[], None]
    ) -> None:
        """``on_struck`` is called at the moment of the fault, ``on_healed`` when its cause is gone."""
        name = fault.target
        make = {
            "kill": self._kill, "end": self._end, "freeze": self._freeze, "crawl": self._crawl,
        }.get(fault.kind.split()[0])  # fmt: skip
        if name == "etcd":
            await self._strike_etcd(fault, on_struck)
        elif fault.kind == "8 CPU hogs":
            on_struck()
            self._hogs = [
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(NUM_HOGS)
            ]
            await last(fault.lasts_s)
            self._end_hogs()
        elif make is not None:
            await make(name, fault.lasts_s, on_struck, on_healed)
            return
        elif name in self._world.networks:
            network = self._world.networks[name]
            on_struck()
            await asyncio.to_thread(network.partition if fault.kind == "partition engine" else network.mute)
            await last(fault.lasts_s)
            await asyncio.to_thread(network.heal)
        else:
            link = self._world.engine_links[name]
            on_struck()
            if fault.kind == "cut engine":
                link.cut(refuse=True)
            elif fault.kind == "hold engine":
                link.hold()
            elif fault.kind == "hold engine's answers":
                link.hold("down")
            elif fault.kind == "slow engine":
                link.slow(delay_s=0.4, bytes_per_s=3000.0)
            else:
                link.inject("down" if "from" in fault.kind else "up")
            await last(fault.lasts_s)
            link.heal()
        on_healed()

    async def close(self) -> None:
        """Make everything good at once."""
        self._end_hogs()
        for process in self._world.processes.values():
            if process.is_stopped:
                process.send(signal.SIGCONT)
        for link in (*self._world.engine_links.values(), *self._world.etcd_links.values()):
            link.heal()
        for network in self._world.networks.values():
            network.heal()

    # -- private --

    async def _kill(
        self, name: str, lasts_s: float, on_struck: Callable[[], None], on_healed: Callable[[], None]
    ) -> None:
        process = self._world.processes[name]
        on_struck()
        process.send(signal.SIGKILL)
        await process.wait()
        await last(lasts_s)
        on_healed()
        await self._world.restart(name)

    async def _end(
        self, name: str, lasts_s: float, on_struck: Callable[[], None], on_healed: Callable[[], None]
    ) -> None:
        process = self._world.processes[name]
        on_struck()
        process.send(signal.SIGTERM)
        status = await process.wait()
        assert status == 0, f"{name} ended with status {status}:\n{process.text[-2000:]}"
        await last(lasts_s)
        on_healed()
        await self._world.restart(name)

    async def _freeze(
        self, name: str, lasts_s: float, on_struck: Callable[[], None], on_healed: Callable[[], None]
    ) -> None:
        process = self._world.processes[name]
        on_struck()
        process.send(signal.SIGSTOP)
        await last(lasts_s)
        process.send(signal.SIGCONT)
        on_healed()

    async def _crawl(
        self, name: str, lasts_s: float, on_struck: Callable[[], None], on_healed: Callable[[], None]
    ) -> None:
        process = self._world.processes[name]
        end_s = time.monotonic() + lasts_s
        on_struck()
        while time.monotonic() < end_s:
            process.send(signal.SIGSTOP)
            await asyncio.sleep(CRAWL_STOPPED_S)
            process.send(signal.SIGCONT)
            await asyncio.sleep(CRAWL_RUNNING_S)
        on_healed()

    async def _strike_etcd(self, fault: Fault, on_struck: Callable[[], None]) -> None:
        etcd, links = self._world.etcd, list(self._world.etcd_links.values())
        assert etcd.process is not None
        on_struck()
        undo: Callable[[], Awaitable[None]] | None = None
        if fault.kind == "kill etcd":
            await asyncio.to_thread(etcd.kill)
            undo = self._world.start_etcd
        elif fault.kind == "freeze etcd":
            etcd.process.send_signal(signal.SIGSTOP)
        elif fault.kind == "garbage from etcd":
            for link in links:
                link.inject("down")
        else:
            for link in links:
                if fault.kind == "cut etcd":
                    link.cut(refuse=True)
                elif fault.kind == "hold etcd":
                    link.hold()
                else:
                    link.slow(delay_s=0.7)
        await last(fault.lasts_s)
        if undo is not None:
            await undo()
        elif fault.kind == "freeze etcd":
            etcd.process.send_signal(signal.SIGCONT)
        for link in links:
            link.heal()

    def _end_hogs(self) -> None:
        for hog in self._hogs:
            hog.kill()
            hog.wait()
        self._hogs = []
