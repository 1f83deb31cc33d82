"""What a process holds: memory, descriptors, threads, asyncio tasks; and how a series of figures grows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.processes import Process

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NUM_LOOKS = 5
_LISTEN = "0A"
_TASKS = re.compile(r"^(\d+) asyncio tasks$", re.MULTILINE)


@dataclass(frozen=True)
class Holding:
    """One process at one moment."""

    rss_mib: float
    num_fds: int
    num_sockets: int
    num_threads: int
    num_tasks: int
    sockets: dict[str, int]
    """How many, by whom they lead to: HOST:PORT of the peer, ``accepted``, ``listening``, ``inside`` (of this machine),
    ``closed`` (a descriptor of what is no connection, or not yet)."""


async def measure(process: Process, timeout_s: float = 20.0) -> Holding:
    """Ask the kernel, and the process itself (SIGUSR1) for its tasks."""
    root = Path(f"/proc/{process.pid}")
    before = len(_TASKS.findall(process.text))
    process.send(signal.SIGUSR1)
    found: list[str] = []
    async with asyncio.timeout(timeout_s):
        while len(found) <= before:
            await asyncio.sleep(0.05)
            found = _TASKS.findall(process.text)
        links, sockets = _look(root)
        for _ in range(NUM_LOOKS):  # what is being opened or closed this moment is no leak
            if not sockets["closed"]:
                break
            await asyncio.sleep(0.2)
            links, sockets = _look(root)
    return Holding(
        rss_mib=int((root / "statm").read_text().split()[1]) * PAGE_BYTES / 2**20,
        num_fds=len(links),
        num_sockets=sum(link.startswith("socket:") for link in links),
        num_threads=len(list((root / "task").iterdir())),
        num_tasks=int(found[-1]),
        sockets=dict(sorted(sockets.items())),
    )


def _look(root: Path) -> tuple[list[str], Counter[str]]:
    """Descriptors and sockets of the same moment."""
    links = [os.readlink(entry) for entry in _existing(root / "fd")]
    return links, _peers(root, links)


def _peers(root: Path, links: Sequence[str]) -> Counter[str]:
    """By the kernel's tables: local address, remote address, state and inode of each TCP socket; paths of the others."""
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    rows = [line.split() for line in (root / "net" / "tcp").read_text().splitlines()[1:]]
    mine = {row[9]: (row[1], row[2], row[3]) for row in rows if row[9] in inodes}
    served = {local.split(":")[1] for local, _, state in mine.values() if state == _LISTEN}
    found: Counter[str] = Counter()
    for local, remote, state in mine.values():
        is_accepted = local.split(":")[1] in served
        found["listening" if state == _LISTEN else "accepted" if is_accepted else _address(remote)] += 1
    paired = {line.split()[6] for line in (root / "net" / "unix").read_text().splitlines()[1:]}
    found["inside"] = len(inodes & paired)
    found["closed"] = len(inodes - mine.keys() - paired)
    return +found


def _address(found: str) -> str:
    """HOST:PORT of the kernel's hexadecimal form: the address as a little-endian word."""
    host, port = found.split(":")
    return f"{socket.inet_ntoa(bytes.fromhex(host)[::-1])}:{int(port, 16)}"


def _existing(directory: Path) -> list[Path]:
    return [entry for entry in directory.iterdir() if entry.is_symlink() and os.path.lexists(entry)]


def slope_per_minute(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Theil-Sen: the median of the slopes of all pairs, which single peaks do not move."""
    slopes = [
        60.0 * (values[j] - values[i]) / (times_s[j] - times_s[i])
        for i in range(len(values))
        for j in range(i + 1, len(values))
        if times_s[j] > times_s[i]
    ]
    return statistics.median(slopes) if slopes else 0.0
