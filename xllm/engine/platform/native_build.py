"""Builds the CPU kernels of ``csrc/`` with the machine's own C++ compiler, once per source, compiler and CPU.

The result is a plain shared library in the user's cache directory, named after a hash of everything it depends on,
and checked by a checksum before it is used: a truncated or altered file is built again. Two processes may build at
the same time; the file appears by an atomic rename.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LOG = logging.getLogger(__name__)
SOURCE_DIR = Path(__file__).resolve().parent / "csrc"
"""A link to ``csrc/`` of the repository; in an installed package the files themselves."""
COMMON_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-w")
BUILD_TIMEOUT_S = 120.0
COMPILERS = ("g++", "c++", "clang++")

_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma")
VARIANTS: Mapping[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "avx512_bf16": (
        frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx2", "fma"}),
        (*_AVX512, "-mavx512bf16"),
    ),
    "avx512": (frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"}), _AVX512),
    "avx2": (frozenset({"avx2", "fma"}), ("-mavx2", "-mfma")),
    "portable": (frozenset(), ()),
}
"""From best to last: CPU flags a variant needs, compiler flags it is built with."""


_IN_FLOAT32 = (
    "unless --dtype says otherwise a bfloat16 checkpoint is run in float32, so that each token reads twice the bytes"
    " of weights and cache; --dtype bfloat16 reads them once and widens every number before it is multiplied"
)
_COSTS: Mapping[str, str] = {
    "avx512_bf16": "",
    "avx512": f"this CPU has no bf16 dot products (avx512_bf16): {_IN_FLOAT32}",
    "avx2": f"this CPU has no AVX-512: vectors are half as wide, and {_IN_FLOAT32}",
    "portable": "this CPU has neither AVX-512 nor AVX2 (or others than are known here): the compiler's plain vectors,"
    f" and {_IN_FLOAT32}",
}
COST_OF_NO_KERNELS = (
    "serving with torch's own operations, correct but slower: a step of a 0.6B model in bfloat16 takes 1.6 (prompts)"
    " to 2.6 times (one request) the processor time"
)
"""Measured on a CPU with bf16 dot products: docs/concepts/cpu-kernels.md."""


class NativeBuildError(Exception):
    """The kernels cannot be built here; says why. Never leaves this room: the reference kernels serve instead."""


def usable_variants(cpu_flags: frozenset[str]) -> tuple[str, ...]:
    """Variants this CPU can run, best first."""
    return tuple(name for name, (needed, _) in VARIANTS.items() if needed <= cpu_flags)


def what_is_lacking(best_variant: str) -> str:
    """What the CPU whose best variant this is lacks, and what that costs; empty when nothing."""
    return _COSTS[best_variant]


def read_cpu_flags() -> frozenset[str]:
    """What the kernel says the CPU can do; empty where it does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def default_cache_dir() -> Path:
    """Where libraries are kept: below ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        NativeBuildError: this user has no home; a shared directory would let others plant code.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "xllm" / "native"
    except RuntimeError as exc:
        raise NativeBuildError(f"no place to keep the library: {exc}") from exc


def build_library(
    variant: str, *, cache_dir: Path, source_dir: Path = SOURCE_DIR, definitions: Sequence[str] = ()
) -> Path:
    """The library of a variant, built if it is not there.

    Args:
        definitions: ``NAME=VALUE`` of the preprocessor, for measuring other designs; part of what names the library.

    Raises:
        NativeBuildError: no sources, no compiler, or it failed.
    """
    sources = sorted([*source_dir.glob("*.cpp"), *source_dir.glob("*.h")])
    if not sources:
        raise NativeBuildError(f"{source_dir} has no sources")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise NativeBuildError(f"no C++ compiler ({', '.join(COMPILERS)}) is installed")
    command = [compiler, *COMMON_FLAGS, *VARIANTS[variant][1], *(f"-D{said}" for said in definitions)]
    digest = hashlib.sha256(f"{_version(compiler)} {platform.machine()} {command[1:]}".encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    target = cache_dir / f"xllm_cpu-{variant}-{digest.hexdigest()[:16]}.so"
    if _is_intact(target):
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        begin_s = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix="build-") as directory:
            fresh = Path(directory) / target.name
            _compile([*command, *(str(s) for s in sources if s.suffix == ".cpp"), "-o", str(fresh)])
            checksum = Path(directory) / "checksum"
            checksum.write_text(_checksum(fresh))
            fresh.replace(target)
            checksum.replace(_checksum_file(target))
    except OSError as exc:
        raise NativeBuildError(f"{cache_dir} cannot be written: {exc}") from exc
    _LOG.info("CPU kernels: %s built in %.1f s", variant, time.perf_counter() - begin_s)
    return target


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise NativeBuildError(f"the compiler did not end within {BUILD_TIMEOUT_S:g} s") from exc
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise NativeBuildError(f"{command[0]} failed: {first[:300]}")


def _version(compiler: str) -> str:
    try:
        done = subprocess.run(
            [compiler, "-dumpfullversion", "-dumpmachine"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NativeBuildError(f"{compiler} does not run: {exc}") from exc
    return done.stdout


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_intact(library: Path) -> bool:
    try:
        return _checksum_file(library).read_text() == _checksum(library)
    except OSError:
        return False
