"""What is known about the machine when a configuration is resolved; gathered elsewhere, judged here."""

from __future__ import annotations

from dataclasses import dataclass

from xllm.config.gemm_curve import GemmCurve


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFacts:
    """One GPU, as the body found it."""

    name: str
    """Product name."""
    total_bytes: int
    """Memory of the device."""
    free_bytes: int
    """Memory nobody uses at this moment."""
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability, e.g. (9, 0)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuCore:
    """One physical core."""

    cpus: tuple[int, ...]
    """Its logical CPUs that this process may run on, as the system numbers them; at least one."""
    node: int = 0
    """NUMA node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFacts:
    """Cores, memory and flags that this process may use (container limits taken into account)."""

    num_cores: int
    """Physical cores this process may run on, cut to its CPU quota; at least 1."""
    cores: tuple[CpuCore, ...] = ()
    """The physical cores, by node; empty where the system does not name them."""
    memory_total_bytes: int
    """Memory this process may ever have: the machine's, or its container's limit where that is less."""
    memory_available_bytes: int
    """Memory that can be taken now without swapping, within the container's limit."""
    memory_limit_bytes: int | None = None
    """The container's memory limit, or None."""
    cpu_name: str = ""
    """The CPU's model name."""
    cpu_flags: frozenset[str] = frozenset()
    """Instruction sets, as the kernel names them."""
    gemm: GemmCurve | None = None
    """Measured rates of the CPU's products, or None where nobody measured them."""
    gpu: GpuFacts | None = None
    """The GPU, or None."""
    system_page_bytes: int = 4096
    """Granule of virtual memory."""
    max_map_count: int = 65530
    """Mappings a process may have (Linux: vm.max_map_count)."""

    @property
    def has_fast_cpu_bf16(self) -> bool:
        """True where the CPU multiplies bf16 natively."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & self.cpu_flags)
