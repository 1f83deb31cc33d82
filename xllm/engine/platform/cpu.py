"""The host as a device."""

from __future__ import annotations

import os
from pathlib import Path

import torch


class CpuPlatform:
    """The host. Memory facts respect a container limit where one is set."""

    kind = "cpu"
    max_gather_bytes = 8 * 1024 * 1024
    """About a share of the last-level cache: gathered K and V are read once more right away."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    @property
    def name(self) -> str:
        """Number of threads torch uses."""
        return f"cpu ({torch.get_num_threads()} threads)"

    @property
    def total_memory_bytes(self) -> int:
        """Physical memory, or the container's limit when that is smaller."""
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(host, _container_limit_bytes() or host)

    @property
    def free_memory_bytes(self) -> int:
        """What the kernel calls available, within the container's limit."""
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, self.total_memory_bytes)
        return self.total_memory_bytes

    def synchronize(self) -> None:
        """Nothing is queued on the host."""


def _container_limit_bytes() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None
