"""What the machine does: bandwidth probe, busy time, memory, trees of processes. Linux only (reads /proc)."""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Probe:
    """Measures memory bandwidth; None where the probe cannot be built."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "bw_probe"
        source = Path(__file__).with_name("bw_probe.c")
        command = [
            "gcc",
            "-O3",
            "-march=native",
            "-ffast-math",
            "-fopenmp",
            str(source),
            "-o",
            str(self._program),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as exc:
            raise SystemExit(f"the bandwidth probe cannot be built: {exc}") from exc

    def gb_per_s(self) -> float:
        done = subprocess.run([str(self._program)], check=True, capture_output=True, text=True, timeout=60)
        return float(done.stdout)


def busy_s() -> float:
    """CPU seconds all processes together have used since boot, interrupts included."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    user, nice, system, _, _, irq, softirq, _ = fields
    return (user + nice + system + irq + softirq) / _TICKS


def own_s(pids: list[int]) -> float:
    """CPU seconds of this process, the children it has waited for, and the given processes."""
    return sum(os.times()[:4]) + sum(_cpu_s(pid) for pid in pids)


def trees_s(roots: Iterable[int]) -> float:
    """CPU seconds of processes and of all below them that still live."""
    return sum(_cpu_s(pid) for root in roots for pid in tree(root))


def tree(root: int) -> list[int]:
    """The process and all below it, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children[int(fields[1])].append(int(entry))
    found, at = [root], 0
    while at < len(found):
        found += children[found[at]]
        at += 1
    return [pid for pid in found if _stat(pid)]


def state(pid: int) -> str:
    """R, S, D, T and so on; empty for a process that has gone."""
    return next(iter(_stat(pid)), "")


def pss_mb(pids: list[int]) -> float:
    """Memory of the processes, shared pages divided among those that share them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def available_mb() -> float:
    """What the kernel thinks can still be used."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024


def read_files(folder: Path) -> None:
    """Bring a model into the page cache."""
    folder = folder.resolve()
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(16 << 20):
                    pass


def _stat(pid: int) -> list[str]:
    """State, parent and so on; empty for a process that has gone or is dead."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    fields = text[text.rindex(")") + 2 :].split()
    return [] if fields[0] in "ZX" else fields


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return sum(int(field) for field in fields[11:15]) / _TICKS if fields else 0.0
