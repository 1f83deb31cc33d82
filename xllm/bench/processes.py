"""What a tree of processes costs now: memory and processor time, as the kernel counts them (Linux)."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FIELDS = {"Pss": "pss_bytes", "Pss_Anon": "pss_anon_bytes", "Pss_File": "pss_file_bytes", "Rss": "rss_bytes"}


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """One process. PSS shares pages that several processes map; page cache that is only mapped counts, too."""

    pid: int
    command: str
    cpu_s: float
    num_threads: int
    rss_bytes: int
    pss_bytes: int
    pss_anon_bytes: int
    pss_file_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Keys with units."""
        return asdict(self)


def measure_tree(root: int, *, proc: Path = Path("/proc")) -> list[ProcessCost]:
    """The process ``root`` and all below it, those that end meanwhile left out; empty where the system does not say."""
    children: dict[int, list[int]] = {}
    for path in proc.glob("[0-9]*"):
        fields = _stat(path)
        if fields:
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop(0)
        waiting += sorted(children.get(pid, []))
        cost = _cost(proc / str(pid))
        if cost is not None:
            found.append(cost)
    return found


def _cost(path: Path) -> ProcessCost | None:
    fields = _stat(path)
    try:
        lines = (path / "smaps_rollup").read_text().splitlines()
        words = (path / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if not fields:
        return None
    sizes = dict.fromkeys(_FIELDS.values(), 0)
    for line in lines:
        name, _, rest = line.partition(":")
        if name in _FIELDS:
            sizes[_FIELDS[name]] = int(rest.split()[0]) * 1024
    is_engine = b"xllm.engine.server" in words
    ticks = os.sysconf("SC_CLK_TCK")
    return ProcessCost(
        pid=int(path.name),
        command="engine" if is_engine else Path(words[0].decode(errors="replace")).name,
        cpu_s=(int(fields[11]) + int(fields[12])) / ticks,
        num_threads=int(fields[17]),
        **sizes,
    )


def _stat(path: Path) -> list[str]:
    """Fields of ``stat`` after the command, which may hold anything."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
