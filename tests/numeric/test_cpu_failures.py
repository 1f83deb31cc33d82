"""A call of the CPU library that finds no memory is an error of that call: the process, and the next call, live on."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from xllm.engine.kernels.moe.native import moe, pack_experts
from xllm.engine.kernels.paged_attention.native import KVStrides, StepRows, attention_args, paged_attention
from xllm.engine.platform.native import HeadsArgs, LayerArgs, MoeArgs, required_library
from xllm.errors import CapacityError

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

MORE_THAN_THERE_IS = 1 << 45
"""Elements of which no system has memory: not even addresses."""
ROWS = StepRows(
    np.array([0, 1], dtype=np.int64), np.array([1], dtype=np.int64), np.zeros((1, 1), dtype=np.int32)
)


def small_attention() -> torch.Tensor:
    k, v = (torch.ones(1, 1, 16, 32) for _ in range(2))
    return paged_attention(torch.ones(1, 1, 32), (k, v), KVStrides(16, 512, 512, 32), 1, ROWS, 1.0, None)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("step", [0, 1 << 60])
def test_attention_without_memory_for_its_threads(variant: str, threads: int, step: int) -> None:
    """Each thread's own memory: none of them may throw out of the parallel region."""
    library = required_library()
    args = attention_args(
        ROWS, KVStrides(16, 512, 512, 32), num_heads=1, num_kv_heads=1, head_dim=MORE_THAN_THERE_IS,
        num_threads=threads,
    )  # fmt: skip
    for _ in range(2):
        with pytest.raises(CapacityError, match=r"xllm_attention.*no memory") as caught:
            library.lib.xllm_attention(0, args, step, threads)
        assert caught.value.status == 503 and caught.value.retryable
    assert torch.equal(small_attention(), torch.ones(1, 1, 32))


def test_a_layer_without_memory(variant: str) -> None:
    library = required_library()
    attention = attention_args(
        ROWS, KVStrides(16, 512, 512, 32), num_heads=1, num_kv_heads=1, head_dim=32, num_threads=1
    )
    heads = HeadsArgs(num_tokens=1, heads=1, kv_heads=1, head_dim=32)
    layer = LayerArgs(hidden=32, intermediate=MORE_THAN_THERE_IS)
    x = torch.ones(1, 32)
    with pytest.raises(CapacityError, match="xllm_layer"):
        library.lib.xllm_layer(0, layer, heads, attention, x.data_ptr(), 0, 1)
    assert torch.equal(x, torch.ones(1, 32))


def test_experts_without_memory(variant: str) -> None:
    library = required_library()
    args = MoeArgs(hidden=32, inner=MORE_THAN_THERE_IS, experts=2, top_k=1)
    with pytest.raises(CapacityError, match="xllm_moe"):
        library.lib.xllm_moe(0, args, None, 1, None, 1)
    x = torch.ones(3, 32)
    weights = [pack_experts(torch.ones(shape)) for shape in ((2, 32), (2, 64, 32), (2, 32, 32))]
    assert torch.isfinite(moe(x, *weights, 1, True)).all()


SAMPLE = """
import ctypes, resource, sys
import numpy as np
lib = ctypes.CDLL(sys.argv[1])
logits = np.zeros(1 << 28, dtype=np.float32)  # addresses; what is read is zeros
floats = [np.full(1, value, dtype=np.float32) for value in (1.0, 0.9, 0.0)]
numbers = [np.zeros(8, dtype=np.int64) for _ in range(9)]
one, x, width = ctypes.c_int64(1), ctypes.c_void_p(logits.ctypes.data), ctypes.c_int64
i = [ctypes.c_void_p(a.ctypes.data) for a in numbers]
f = [ctypes.c_void_p(a.ctypes.data) for a in floats]

def both(of_sample, of_score):
    return (
        lib.xllm_sample(x, one, width(of_sample), f[0], i[0], f[1], f[2], *i[1:5], 1),
        lib.xllm_score(x, width(of_score), *i[:3], one, one, *i[5:9], 1),
    )

first = both(1000, 1000)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 22), hard))
found = both(1 << 22, 1 << 28)  # 16 MiB each, and there are 4
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(first, found, both(1 << 22, 1000))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of addresses are Linux's")
def test_sampling_and_scoring_without_memory(variant: str) -> None:
    """Inside the parallel region, with the rest of the process close to its limit; then with memory again."""
    path = required_library().path
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, str(path)],
        capture_output=True, text=True, timeout=100, check=False, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(0, 0) (1, 1) (0, 0)", done.stdout


def test_a_function_that_may_fail_says_so() -> None:
    """Each function that returns a status is checked by ctypes; the others return nothing."""
    library = required_library().lib
    checked = [name for name in ("attention", "layer", "moe", "sample", "score", "checksum")]
    for name in checked:
        function = getattr(library, f"xllm_{name}")
        assert function.restype is ctypes.c_int and hasattr(function, "errcheck"), name
