"""Device facts: what the rest of the body may know about the machine it runs on.

platform.py   the Platform protocol, ``select_platform``
cpu.py        the host
cuda.py       one NVIDIA GPU
host_memory.py  zeros that cost nothing until they are touched
native.py     the CPU kernels' shared library, loaded
native_build.py  builds it, once per source, compiler and CPU
"""

from __future__ import annotations

from xllm.engine.platform.platform import Platform, select_platform

__all__ = ["Platform", "select_platform"]
