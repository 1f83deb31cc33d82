"""The CPU kernels' shared library, loaded: plain C functions through ctypes, no torch headers, no pickle.

INVARIANTS
- A library is loaded once per process and variant and never unloaded.
- Calls release the interpreter's lock; tensors they are given must stay alive and unchanged meanwhile.
- A call that finds no memory raises CapacityError and leaves the library as it was; what it was to write is undefined.
- No compiler, no sources or a failing build is not an error: ``native_library`` says None, once in the log why.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import time
from ctypes import POINTER, c_float, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import torch

from xllm.engine.platform.native_build import (
    COST_OF_NO_KERNELS,
    NativeBuildError,
    build_library,
    default_cache_dir,
    read_cpu_flags,
    usable_variants,
    what_is_lacking,
)
from xllm.errors import CapacityError, InternalError

_LOG = logging.getLogger(__name__)
ABI_VERSION = 2
TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Element types the kernels know, as the C interface numbers them."""

MIN_PARALLEL_ELEMENTS = 1 << 14


class HeadsArgs(ctypes.Structure):
    """``struct HeadsArgs`` of csrc/parts.h."""

    _fields_ = [
        (name, c_void_p) for name in ("qkv", "q_norm", "k_norm", "q", "k_pool", "v_pool", "cos", "sin")
    ]
    _fields_ += [(name, c_void_p) for name in ("write_rows", "write_tokens")]
    _fields_ += [(name, c_int64) for name in ("num_tokens", "num_written", "heads", "kv_heads", "head_dim")]
    _fields_ += [("is_all_written", c_int64), ("is_paired", c_int64), ("eps", c_float)]


class AttentionArgs(ctypes.Structure):
    """``struct AttentionArgs`` of csrc/attention.h."""

    _fields_ = [
        (name, c_void_p) for name in ("q", "k", "v", "out", "tables", "names", "query_start", "seq_lens")
    ]
    _fields_ += [(name, c_int64) for name in ("num_seqs", "table_stride", "heads", "kv_heads", "head_dim")]
    _fields_ += [(name, c_int64) for name in ("q_stride", "block_size", "block_stride", "head_stride")]
    _fields_ += [(name, c_int64) for name in ("token_stride", "window", "split_below", "are_shared")]
    _fields_ += [("is_paired", c_int64)]
    _fields_ += [("scale", c_float)]


class MoeArgs(ctypes.Structure):
    """``struct MoeArgs`` of csrc/moe.h."""

    _fields_ = [(name, c_void_p) for name in ("router", "gate_up", "down")]
    _fields_ += [(name, c_int64) for name in ("hidden", "inner", "experts", "top_k", "is_normed")]


class PenaltyArgs(ctypes.Structure):
    """``struct PenaltyArgs`` of csrc/scoring.h."""

    _fields_ = [(name, c_void_p) for name in ("ids", "counts")]
    _fields_ += [(name, c_int64) for name in ("row", "num_ids")]
    _fields_ += [(name, c_float) for name in ("frequency", "presence", "repetition")]


class LayerArgs(ctypes.Structure):
    """``struct LayerArgs`` of csrc/xllm_cpu.cpp."""

    _fields_ = [
        (name, c_void_p)
        for name in (
            *("attention_norm", "qkv", "qkv_bias", "q_norm", "k_norm", "out", "out_bias"),
            *("mlp_norm", "gate_up", "gate_up_bias", "down", "down_bias"),
        )
    ]
    _fields_ += [("hidden", c_int64), ("intermediate", c_int64), ("moe", POINTER(MoeArgs)), ("eps", c_float)]


_SIGNATURES = {
    "xllm_pack": (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int),
    "xllm_checksum": (c_void_p, c_int64, POINTER(c_uint64), c_int),
    "xllm_unpack_rows": (c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int),
    "xllm_linear": (
        *(c_int, c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int64, c_int),
    ),
    "xllm_rms_norm": (
        *(c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p),
        *(c_int64, c_float, c_void_p, c_int),
    ),
    "xllm_silu_mul": (c_int, c_void_p, c_int64, c_int64, c_void_p, c_int),
    "xllm_heads": (c_int, POINTER(HeadsArgs), c_int),
    "xllm_attention": (c_int, POINTER(AttentionArgs), c_int64, c_int),
    "xllm_store_pairs": (c_int, *((c_void_p,) * 3), c_int64, c_int64, c_void_p, c_void_p, c_int),
    "xllm_moe": (c_int, POINTER(MoeArgs), c_void_p, c_int64, c_void_p, c_int),
    "xllm_layer": (
        *(c_int, POINTER(LayerArgs), POINTER(HeadsArgs), POINTER(AttentionArgs)),
        *(c_void_p, c_int64, c_int),
    ),
    "xllm_final_norm": (c_int, c_void_p, c_int64, c_void_p, c_int64, c_float, c_void_p, c_int),
    "xllm_largest": (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int),
    "xllm_penalise": (c_void_p, c_int64, POINTER(PenaltyArgs), c_int64, c_int),
    "xllm_score": (c_void_p, c_int64, *((c_void_p,) * 3), c_int64, c_int64, *((c_void_p,) * 4), c_int),
    "xllm_sample": (c_void_p, c_int64, c_int64, *((c_void_p,) * 8), c_int),
}

_WITH_STATUS = {
    "xllm_checksum", "xllm_attention", "xllm_moe", "xllm_layer", "xllm_score", "xllm_sample",
}  # fmt: skip
"""Functions that allocate, and so may fail."""
_NO_MEMORY = 1


def _check_status(status: int, function: Any, _: tuple[Any, ...]) -> int:
    """What ctypes calls with the status of a function that may fail."""
    if status == 0:
        return 0
    if status == _NO_MEMORY:
        raise CapacityError(
            f"{function.__name__}: the system gave no memory for the work of a step",
            status=503,
            hint="a smaller --kv-cache-memory or --max-num-batched-tokens, or a higher memory limit",
        )
    raise InternalError(f"{function.__name__} failed with status {status}")


class NativeLibrary:
    """One loaded variant; ``lib`` has the functions of csrc/xllm_cpu.cpp."""

    def __init__(self, path: Path, variant: str) -> None:
        self.path = path
        self.variant = variant
        self.lib = ctypes.CDLL(str(path))
        found = self.lib.xllm_abi_version()
        assert found == ABI_VERSION, f"{path} speaks ABI {found}, not {ABI_VERSION}"
        for name, types in _SIGNATURES.items():
            function = getattr(self.lib, name)
            function.argtypes, function.restype = types, None
            if name in _WITH_STATUS:
                function.restype, function.errcheck = c_int, _check_status
        self.lib.xllm_num_shared_tiles.restype = c_int64

    @staticmethod
    def num_threads(num_elements: int) -> int:
        """Threads for work over so many elements: torch's number, or one where starting them would cost more."""
        return torch.get_num_threads() if num_elements >= MIN_PARALLEL_ELEMENTS else 1

    @property
    def num_shared_tiles(self) -> int:
        """Reads of a tile of keys that attention has saved in this process, because rows share a prefix."""
        return int(self.lib.xllm_num_shared_tiles())

    @property
    def has_dot_bf16(self) -> bool:
        """Whether this variant multiplies pairs of bfloat16 numbers in one instruction."""
        return bool(self.lib.xllm_has_dot_bf16())

    @property
    def vector_width(self) -> int:
        """Float32 lanes of a vector."""
        return int(self.lib.xllm_vector_width())


def required_library() -> NativeLibrary:
    """The library, for code that only runs where it is known to be there."""
    library = native_library()
    assert library is not None, "native kernels were selected without their library"
    return library


@functools.cache
def native_library(variant: str = "") -> NativeLibrary | None:
    """The library, or None where it cannot be had. ``variant``: the best this CPU runs when empty."""
    usable = usable_variants(read_cpu_flags())
    wanted = variant or usable[0]
    if wanted not in usable:
        return None
    try:
        path = build_library(wanted, cache_dir=default_cache_dir())
        library = NativeLibrary(path, wanted)
    except (NativeBuildError, OSError) as exc:
        _LOG.warning(
            "CPU kernels are not built (%s): %s; install g++ for the fast ones", exc, COST_OF_NO_KERNELS
        )
        return None
    _LOG.info("CPU kernels: %s (%s)", wanted, path)
    if lacking := what_is_lacking(usable[0]):
        _LOG.warning("CPU kernels: %s", lacking)
    return library


def main() -> None:
    """Build the library unless it is there, and say how long that took; ``scripts/setup`` runs it."""
    begin_s = time.perf_counter()
    library = native_library()
    if library is None:
        sys.exit(1)
    print(f"CPU kernels: {library.variant}, ready in {time.perf_counter() - begin_s:.1f} s")


if __name__ == "__main__":
    main()
