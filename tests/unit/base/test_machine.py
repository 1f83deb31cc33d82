from __future__ import annotations

import os
from pathlib import Path

import pytest

from xllm.base.machine import gather_machine_facts, query_gpu_facts

GIB = 1024**3
needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not Linux")


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 16 GiB, 12 of them available, whose allowed CPUs are two threads of each core."""
    write(
        tmp_path, "proc/meminfo", f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {12 * 2**20} kB\n"
    )
    blocks = [
        f"processor\t: {cpu}\nmodel name\t: Testor 9000\nphysical id\t: 0\ncore id\t: {number // 2}\nflags\t: avx2 avx512_bf16"
        for number, cpu in enumerate(sorted(os.sched_getaffinity(0)))
    ]
    write(tmp_path, "proc/cpuinfo", "\n\n".join(blocks) + "\n")
    return tmp_path


@needs_affinity
def test_without_a_container(root: Path) -> None:
    facts = gather_machine_facts(root=root)
    assert (facts.memory_total_bytes, facts.memory_available_bytes) == (16 * GIB, 12 * GIB)
    assert facts.memory_limit_bytes is None
    assert facts.cpu_name == "Testor 9000" and facts.has_fast_cpu_bf16
    assert facts.num_cores == -(-len(os.sched_getaffinity(0)) // 2)
    assert facts.gpu is None


@needs_affinity
def test_limits_of_a_container_version_2(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/pod/box\n")
    write(root, "sys/fs/cgroup/pod/memory.max", str(4 * GIB))
    write(root, "sys/fs/cgroup/pod/memory.current", str(3 * GIB))
    write(root, "sys/fs/cgroup/pod/memory.stat", f"anon 1\ninactive_file {GIB}\n")
    write(root, "sys/fs/cgroup/pod/box/memory.max", "max")
    write(root, "sys/fs/cgroup/pod/box/cpu.max", "100000 100000")
    facts = gather_machine_facts(root=root)
    assert facts.memory_limit_bytes == facts.memory_total_bytes == 4 * GIB
    assert facts.memory_available_bytes == 2 * GIB
    assert facts.num_cores == 1


@needs_affinity
def test_limits_of_a_container_version_1(root: Path) -> None:
    write(root, "proc/self/cgroup", "3:memory:/box\n2:cpu,cpuacct:/box\n")
    write(root, "sys/fs/cgroup/memory/box/memory.limit_in_bytes", str(2 * GIB))
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))
    write(root, "sys/fs/cgroup/memory/box/memory.usage_in_bytes", str(GIB))
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1")
    write(root, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000")
    facts = gather_machine_facts(root=root)
    assert (facts.memory_limit_bytes, facts.memory_available_bytes) == (2 * GIB, GIB)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    facts = gather_machine_facts(root=tmp_path)
    assert facts.num_cores >= 1 and facts.memory_total_bytes > 0 and facts.memory_available_bytes > 0


def fake_nvidia_smi(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, "nvidia-smi", f"#!/bin/sh\n{script}\n")
    (directory / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpu_facts_from_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, 'echo "NVIDIA H200, 143771, 143000, 9.0"', monkeypatch)
    assert query_gpu_facts(torch_version="2.13.0+cpu") is None
    gpu = query_gpu_facts(torch_version="2.13.0")
    assert gpu is not None
    assert (gpu.name, gpu.total_bytes, gpu.capability) == ("NVIDIA H200", 143771 * 1024**2, (9, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert query_gpu_facts(torch_version="2.13.0") is None


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo 'GPU, [N/A], 3, 9.0'"])
def test_a_tool_that_fails_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake_nvidia_smi(tmp_path, script, monkeypatch)
    assert query_gpu_facts(torch_version="2.13.0") is None


@needs_affinity
def test_cores_are_named_by_node(root: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    write(root, "sys/devices/system/node/node1/cpulist", ",".join(map(str, allowed)))
    cores = gather_machine_facts(root=root).cores
    assert [cpu for core in cores for cpu in core.cpus] == allowed
    assert all(len(core.cpus) <= 2 and core.node == 1 for core in cores)
