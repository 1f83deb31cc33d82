"""FaultProxy: a TCP relay that breaks links on command: cut, refuse, delay, throttle, hold, garbage, lies.

It stands between two processes (or a client and its etcd) and behaves like a network between them: what it holds is
not lost, only late, as with TCP; what it cuts is reset. Directions are seen from the client: ``up`` to the server,
``down`` back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

CHUNK_BYTES = 64 * 1024
Direction = Literal["up", "down", "both"]


@dataclass
class Way:
    """What happens to the bytes of one direction."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    """0: as fast as they come."""
    is_held: bool = False
    """Half-open: nothing passes and nobody is told."""
    junk: bytes = b""
    """Sent once, before the next bytes that pass."""
    edit: Callable[[bytes], bytes] | None = None
    """Lies: every chunk passes through it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """``async with FaultProxy("127.0.0.1:2379") as proxy: proxy.address``; every fault is ended by ``heal``."""

    def __init__(self, target: str, *, seed: int = 0, host: str = "127.0.0.1") -> None:
        """``target``: HOST:PORT; it may be changed, or not be there yet. ``host``: where to listen."""
        self.target = target
        self._host = host
        self.address = ""
        self.num_bytes = 0
        """Relayed, both directions."""
        self.num_accepted = 0
        self._rng = random.Random(seed)
        self._ways = {"up": Way(), "down": Way()}
        self._refuses = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> FaultProxy:
        self._server = await asyncio.start_server(self._accept, self._host, port)
        self.address = f"{self._host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reset_all()

    async def __aenter__(self) -> FaultProxy:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    # -- faults --

    def cut(self, *, refuse: bool = False) -> None:
        """Reset every connection; with ``refuse`` new ones, too, until ``heal``."""
        self._refuses = refuse
        self._reset_all()

    def hold(self, direction: Direction = "both") -> None:
        """Half-open: bytes wait, connections stay, new ones are accepted and wait, too."""
        self._set(direction, is_held=True)

    def slow(self, *, delay_s: float = 0.0, bytes_per_s: float = 0.0, direction: Direction = "both") -> None:
        """Late, or few at a time."""
        self._set(direction, delay_s=delay_s, bytes_per_s=bytes_per_s)

    def inject(self, direction: Direction = "both", num_bytes: int = 64) -> None:
        """Random bytes into the next connection that carries something; they announce a frame above any limit."""
        for way in self._chosen(direction):
            way.junk = b"\xff" + self._rng.randbytes(max(num_bytes, 8) - 1)
            way.changed.set()

    def lie(self, edit: Callable[[bytes], bytes], direction: Direction = "down") -> None:
        """Every chunk is what ``edit`` makes of it."""
        self._set(direction, edit=edit)

    def heal(self) -> None:
        """A good network again; connections that still live go on."""
        self._refuses = False
        self._set("both", delay_s=0.0, bytes_per_s=0.0, is_held=False, junk=b"", edit=None)

    # -- private --

    def _chosen(self, direction: Direction) -> list[Way]:
        return [way for name, way in self._ways.items() if direction in (name, "both")]

    def _set(self, direction: Direction, **fields: object) -> None:
        for way in self._chosen(direction):
            for name, value in fields.items():
                setattr(way, name, value)
            way.changed.set()

    def _reset_all(self) -> None:
        for writer in list(self._writers):
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it may be gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.num_accepted += 1
        try:
            if not self._refuses:
                await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.rsplit(":", 1)
        their_reader, their_writer = await asyncio.open_connection(host, int(port))
        self._writers.add(their_writer)
        pumps = [
            asyncio.create_task(self._pump(reader, their_writer, self._ways["up"])),
            asyncio.create_task(self._pump(their_reader, writer, self._ways["down"])),
        ]
        try:
            # A reset of either side ends both; a mere end of one direction lets the other go on.
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            for pump in done:
                pump.exception()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            their_writer.transport.abort()
            self._writers.discard(their_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        """One direction, until its end; bytes under way are delayed, not reordered."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._receive(reader, waiting))
            both.create_task(self._send(waiting, writer, way))

    async def _receive(
        self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            data = await reader.read(CHUNK_BYTES)
            await waiting.put((loop.time(), data))
            if not data:
                return

    async def _send(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Way
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            came_s, data = await waiting.get()
            while way.is_held or came_s + way.delay_s > loop.time():
                way.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await way.changed.wait()
            if not data:
                writer.write_eof()
                return
            if way.edit is not None:
                data = way.edit(data)
            if way.junk:
                data, way.junk = way.junk + data, b""
            if way.bytes_per_s:
                await asyncio.sleep(len(data) / way.bytes_per_s)
            writer.write(data)
            await writer.drain()
            self.num_bytes += len(data)
