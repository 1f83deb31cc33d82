"""Gathers MachineFacts from the operating system: cores, memory, container limits, CPU flags. No torch.

GPU facts are passed in by the body, which asks torch, or by processes without torch, which ask the
driver's own tool (:func:`query_gpu_facts`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from xllm.config.gemm_curve import curve_path, try_load_curve
from xllm.config.machine_facts import CpuCore, GpuFacts, MachineFacts
from xllm.config.threads import parse_cpu_list

_NO_LIMIT = 2**60
DEFAULT_MAX_MAP_COUNT = 65530
"""The kernel's own default, where it does not say."""


def gather_machine_facts(gpu: GpuFacts | None = None, *, root: Path = Path("/")) -> MachineFacts:
    """Read the facts of this machine; ``root`` is where /proc and /sys are looked for (tests give a copy).

    Where a file is missing (not Linux) the operating system's own calls answer.
    """
    total, available = _memory(root)
    limit, used = _cgroup_memory(root)
    if limit is not None:
        total = min(total, limit)
        available = min(available, max(limit - used, 0))
    cpuinfo = _read(root / "proc/cpuinfo")
    cores = _cores(root, cpuinfo)
    cpu_name, num_cores = _cpu_value(cpuinfo, "model name"), _num_cores(root, cores)
    is_here = root == Path("/")
    return MachineFacts(
        num_cores=num_cores,
        cores=cores,
        memory_total_bytes=total,
        memory_available_bytes=available,
        memory_limit_bytes=limit,
        cpu_name=cpu_name,
        cpu_flags=frozenset((_cpu_value(cpuinfo, "flags") or _cpu_value(cpuinfo, "Features")).split()),
        gemm=try_load_curve(curve_path(), cpu_name=cpu_name, num_threads=num_cores) if is_here else None,
        gpu=gpu,
        system_page_bytes=os.sysconf("SC_PAGE_SIZE"),
        max_map_count=_read_int(root / "proc/sys/vm/max_map_count") or DEFAULT_MAX_MAP_COUNT,
    )


def has_cpu_only_torch(torch_version: str | None = None) -> bool:
    """True when the installed torch cannot use a GPU: its version says so, nothing is imported."""
    if torch_version is None:
        try:
            torch_version = version("torch")
        except PackageNotFoundError:
            return False
    return torch_version.endswith("+cpu")


def query_gpu_facts(*, torch_version: str | None = None, timeout_s: float = 10.0) -> GpuFacts | None:
    """The first visible NVIDIA GPU as ``nvidia-smi`` reports it.

    None where there is none, where the tool does not answer, or where torch (of ``torch_version``, default: the one
    installed) could not use it.
    """
    tool = None if has_cpu_only_torch(torch_version) else shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or (visible is not None and visible.strip() in ("", "-1")):
        return None
    fields = "name,memory.total,memory.free,compute_cap"
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    if visible:
        command.append(f"--id={visible.split(',')[0]}")
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    cells = [cell.strip() for cell in answer.stdout.strip().partition("\n")[0].split(",")]
    if len(cells) != 4 or not (cells[1].isdigit() and cells[2].isdigit()):
        return None
    major, _, minor = cells[3].partition(".")
    capability = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
    mib = 1024**2
    return GpuFacts(
        name=cells[0], total_bytes=int(cells[1]) * mib, free_bytes=int(cells[2]) * mib, capability=capability
    )


def _num_cores(root: Path, cores: Sequence[CpuCore]) -> int:
    num_cores, quota = len(cores) or os.cpu_count() or 1, _cgroup_cpus(root)
    return max(1, min(num_cores, int(quota)) if quota is not None else num_cores)


def _cores(root: Path, cpuinfo: str) -> tuple[CpuCore, ...]:
    """Physical cores by node, as far as this process may use them; a CPU that names no core is one."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    named = {_block_cpu(block): _core_of(block) for block in cpuinfo.strip().split("\n\n")}
    cpus: dict[tuple[str, str], list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        cpus.setdefault(named.get(cpu) or ("", f"cpu {cpu}"), []).append(cpu)
    node_of = _nodes(root)
    cores = [CpuCore(cpus=tuple(group), node=node_of.get(group[0], 0)) for group in cpus.values()]
    return tuple(sorted(cores, key=lambda core: (core.node, core.cpus)))


def _nodes(root: Path) -> dict[int, int]:
    found = {}
    for path in (root / "sys/devices/system/node").glob("node[0-9]*"):
        for cpu in parse_cpu_list(_read(path / "cpulist").strip()):
            found[cpu] = int(path.name.removeprefix("node"))
    return found


def _core_of(block: str) -> tuple[str, str] | None:
    package, core = _cpu_value(block, "physical id"), _cpu_value(block, "core id")
    return (package, core) if core else None


def _block_cpu(block: str) -> int:
    text = _cpu_value(block, "processor")
    return int(text) if text.isdigit() else -1


def _cpu_value(cpuinfo: str, key: str) -> str:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _memory(root: Path) -> tuple[int, int]:
    fields = {}
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    if "MemTotal" in fields:
        return fields["MemTotal"], fields.get("MemAvailable", fields.get("MemFree", 0))
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    has_free = "SC_AVPHYS_PAGES" in os.sysconf_names
    return total, os.sysconf("SC_AVPHYS_PAGES") * page if has_free else total // 2


def _cgroup_dirs(root: Path, controller: str) -> list[Path]:
    """The process's control group and its ancestors, version 2 then version 1; a limit of any of them
    binds."""
    dirs = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            top = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        dirs += [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return dirs


def _cgroup_memory(root: Path) -> tuple[int | None, int]:
    """(limit, used) of the tightest group that has a limit; page cache counts as free."""
    tightest: tuple[int | None, int] = (None, 0)
    for directory in _cgroup_dirs(root, "memory"):
        limit = _read_int(directory / "memory.max") or _read_int(directory / "memory.limit_in_bytes")
        if limit is None or limit >= _NO_LIMIT or (tightest[0] is not None and limit >= tightest[0]):
            continue
        used = _read_int(directory / "memory.current") or _read_int(directory / "memory.usage_in_bytes") or 0
        stat = dict(line.split(maxsplit=1) for line in _read(directory / "memory.stat").splitlines())
        cached = int(stat.get("inactive_file", stat.get("total_inactive_file", "0")))
        tightest = (limit, max(used - cached, 0))
    return tightest


def _cgroup_cpus(root: Path) -> float | None:
    quotas = []
    for directory in _cgroup_dirs(root, "cpu"):
        words = _read(directory / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
        quota, period = _read_int(directory / "cpu.cfs_quota_us"), _read_int(directory / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read_int(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
