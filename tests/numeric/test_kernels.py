"""Every row of the kernel table against a plain definition in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from xllm.engine.kernels import KERNEL_TABLE
from xllm.engine.kernels.paged_attention.reference import Workspace
from xllm.engine.platform.native import native_library

TYPES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def rows_of(operation: str) -> list[str]:
    found = [name for name in KERNEL_TABLE.names() if name.startswith(f"{operation}.")]
    assert f"{operation}.reference" in found
    return [name for name in found if not name.endswith(".native") or native_library() is not None]


def check(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    scale = float(expected.abs().max())
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=TYPES[dtype] * scale)


def load(name: str) -> Callable[..., Any]:
    return KERNEL_TABLE.load(name)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("name", rows_of("linear"))
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 33, 17), (1, 64, 128), (8, 96, 200), (200, 34, 65)])
def test_linear(name: str, dtype: torch.dtype, with_bias: bool, shape: tuple[int, int, int]) -> None:
    rows, num_in, num_out = shape
    x, w, b = (torch.randn(s).to(dtype) for s in ((rows, num_in), (num_out, num_in), (num_out,)))
    expected = x.double() @ w.double().T + (b.double() if with_bias else 0)
    packed = load(name.replace("linear.", "pack_weight."))(w)
    check(load(name)(x, packed, b if with_bias else None), expected, dtype)
    wide = load(name)(x, packed, b if with_bias else None, torch.float32)
    assert wide.dtype == torch.float32
    check(wide.to(dtype), expected, dtype)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("name", rows_of("rms_norm"))
@pytest.mark.parametrize("shape", [(7, 40), (3, 4, 16)])
def test_rms_norm(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, w = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[-1]).to(dtype)
    d = x.double()
    expected = d / (d.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * w.double()
    check(load(name)(x, w, 1e-3), expected, dtype)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("name", rows_of("rotary"))
def test_rotary(name: str, dtype: torch.dtype) -> None:
    x, angle = torch.randn(6, 3, 8).to(dtype), torch.randn(6, 1, 4)
    z = torch.complex(x[..., :4].double(), x[..., 4:].double()) * torch.polar(
        torch.ones(()).double(), angle.double()
    )
    cos, sin = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)
    check(load(name)(x, cos, sin), torch.cat((z.real, z.imag), dim=-1), dtype)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("name", rows_of("silu_mul"))
def test_silu_mul(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 26).to(dtype)
    gate, up = x[:, :13].double(), x[:, 13:].double()
    check(load(name)(x), gate * torch.sigmoid(gate) * up, dtype)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("name", rows_of("moe"))
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_moe(name: str, dtype: torch.dtype, norm: bool, num_tokens: int) -> None:
    experts, top_k, inner, width = 5, 3, 12, 16
    x = torch.randn(num_tokens, width).to(dtype)
    router = torch.randn(experts, width).to(dtype)
    gate_up, down = (
        torch.randn(s).to(dtype) / 4 for s in ((experts, 2 * inner, width), (experts, width, inner))
    )
    probabilities = torch.softmax(x.double() @ router.double().T, -1)
    expected = torch.zeros(num_tokens, width, dtype=torch.float64)
    for t in range(num_tokens):
        best = probabilities[t].topk(top_k)
        weights = best.values / best.values.sum() if norm else best.values
        for weight, e in zip(weights, best.indices.tolist(), strict=True):
            hidden = gate_up[e].double() @ x[t].double()
            gate, up = hidden[:inner], hidden[inner:]
            expected[t] += weight * (down[e].double() @ (gate * torch.sigmoid(gate) * up))
    packed = [load(name.replace("moe.", "pack_experts."))(w) for w in (router, gate_up, down)]
    check(load(name)(x, *packed, top_k, norm), expected, dtype)


@pytest.mark.parametrize("name", rows_of("moe"))
def test_moe_rows_are_independent(name: str) -> None:
    x, router = torch.randn(20, 16), torch.randn(6, 16)
    gate_up, down = torch.randn(6, 24, 16), torch.randn(6, 16, 12)
    packed = [load(name.replace("moe.", "pack_experts."))(w) for w in (router, gate_up, down)]
    together = load(name)(x, *packed, 2, True)
    for i in range(20):
        alone = load(name)(x[i : i + 1], *packed, 2, True)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", rows_of("kv_write"))
def test_kv_write(name: str) -> None:
    pool = torch.zeros(4, 2, 3, 5)
    new = torch.randn(3, 2, 5)
    slots = [(2, 1), (0, 0)]
    rows = torch.tensor([(b * 2 + h) * 3 + o for b, o in slots for h in range(2)])
    load(name)(pool, new, rows, torch.tensor([0, 2]))
    expected = torch.zeros(4, 2, 3, 5)
    expected[2, :, 1], expected[0, :, 0] = new[0], new[2]
    assert torch.equal(pool, expected)


@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize(
    "name", ["paged_attention.reference"]
)  # native has tests of its own: test_cpu_native
@pytest.mark.parametrize("groups", [1, 3])
def test_paged_attention_of_decodes(name: str, dtype: torch.dtype, groups: int) -> None:
    """Two rows of 5 and 8 tokens over shuffled blocks of 4; stale slots hold NaN."""
    heads, head_dim, size, lengths = 2, 8, 4, [5, 8]
    pools = tuple(torch.full((6, heads, size, head_dim), float("nan"), dtype=dtype) for _ in range(2))
    tables = [[4, 1], [0, 3]]
    dense = [[torch.randn(n, heads, head_dim).to(dtype) for n in lengths] for _ in range(2)]
    for pool, rows in zip(pools, dense, strict=True):
        for table, values in zip(tables, rows, strict=True):
            for t, value in enumerate(values):
                pool[table[t // size], :, t % size] = value
    q = torch.randn(2, 1, heads * groups, head_dim).to(dtype)
    gather = torch.tensor([b * heads + h for table in tables for h in range(heads) for b in table])
    stale = torch.tensor([h * 8 + t for h in range(heads) for t in range(5, 8)])
    hidden = (torch.arange(8) >= torch.tensor(lengths)[:, None])[:, None, None, None]
    out = load(name)(q, pools, gather, stale, hidden, (), 0.4, (Workspace(), Workspace()))
    expected = torch.empty(q.shape, dtype=torch.float64)
    for r in range(2):
        for h in range(heads * groups):
            k, v = (dense[i][r][:, h // groups].double() for i in range(2))
            scores = torch.softmax(k @ q[r, 0, h].double() * 0.4, 0)
            expected[r, 0, h] = scores @ v
    check(out, expected, dtype)
    assert math.isfinite(float(out.sum()))
