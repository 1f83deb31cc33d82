"""What is written in a turn leaves at its end: joined per connection, in order, before a close."""

from __future__ import annotations

import asyncio
from typing import Any

from xllm.api.turn_writes import BATCH, TurnTransport, TurnWrites


class Recorder:
    """Stands for a transport."""

    def __init__(self, log: list[tuple[str, bytes]], name: str) -> None:
        self._log = log
        self._name = name
        self.has_closed = False

    def write(self, data: bytes) -> None:
        self._log.append((self._name, data))

    def close(self) -> None:
        self.has_closed = True
        self._log.append((self._name, b"closed"))

    def is_closing(self) -> bool:
        return self.has_closed


def open_transports(num: int) -> tuple[list[tuple[str, bytes]], list[Any]]:
    log: list[tuple[str, bytes]] = []
    writes = TurnWrites()
    recorders: list[Any] = [Recorder(log, f"t{number}") for number in range(num)]
    return log, [TurnTransport(recorder, writes) for recorder in recorders]


def test_pieces_of_a_turn_are_one_write() -> None:
    async def main() -> None:
        log, (first, second) = open_transports(2)
        first.write(b"head ")
        second.write(b"other")
        first.write(b"body")
        assert log == []
        await asyncio.sleep(0)
        assert log == [("t0", b"head body"), ("t1", b"other")]
        first.write(b"next turn")
        await asyncio.sleep(0)
        assert log[2:] == [("t0", b"next turn")]

    asyncio.run(main())


def test_a_close_comes_after_what_was_written_and_nothing_after_it() -> None:
    async def main() -> None:
        log, (first, second) = open_transports(2)
        first.write(b"last words")
        first.close()
        assert log == [("t0", b"last words"), ("t0", b"closed")]
        first.write(b"too late")
        second.write(b"still here")
        await asyncio.sleep(0)
        assert log[2:] == [("t1", b"still here")] and first.is_closing()

    asyncio.run(main())


def test_no_more_than_a_batch_waits() -> None:
    async def main() -> None:
        log, transports = open_transports(2 * BATCH + 1)
        for transport in transports:
            transport.write(b"x")
        assert [name for name, _ in log] == [f"t{number}" for number in range(2 * BATCH)]
        await asyncio.sleep(0)
        assert len(log) == 2 * BATCH + 1

    asyncio.run(main())
