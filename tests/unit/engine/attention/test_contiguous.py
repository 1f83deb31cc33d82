"""Planner, backend and kernel of the contiguous layout against plain attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xllm.engine.attention import ContiguousAttention, ContiguousPlanner
from xllm.engine.kernels import KERNEL_TABLE, select_kernels
from xllm.engine.kernels.paged_attention.reference import Tile
from xllm.engine.memory import LayerKV

HEADS, GROUPS, DIM, SIZE, PER_TOKEN = 2, 3, 8, 4, 8
SCALE = 0.4


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """``q [Q, H * G, K]`` are the last of ``k, v [N, H, K]``."""
    count, length = len(q), len(k)
    k, v = (x.double().repeat_interleave(GROUPS, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,nhd->hqn", q.double(), k) * SCALE
    position = torch.arange(length - count, length)[:, None]
    hidden = torch.arange(length) > position
    if window is not None:
        hidden |= torch.arange(length) <= position - window
    return torch.einsum("hqn,nhd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("is_split", [False, True])
def test_rows_of_any_shape(is_split: bool, window: int | None) -> None:
    """A decode, a chunk behind a prefix, a whole prompt of several tiles; memory beyond the rows is NaN."""
    torch.manual_seed(1)
    queries, lengths = np.array([1, 5, 150, 1]), np.array([13, 9, 150, 1])
    width = 38
    tables = np.zeros((4, width), dtype=np.int32)
    for i, first in enumerate((40, 10, 60, 3)):
        tables[i] = np.arange(first, first + width)
    if is_split:
        tables[0, 2], tables[1, 1], tables[2, 30] = 200, 210, 220
    pool = torch.full((240 * SIZE * PER_TOKEN, DIM), float("nan"))
    kv = LayerKV(pool[2 * HEADS :], pool[3 * HEADS :])  # the second of two layers
    planner = ContiguousPlanner(
        block_size=SIZE, num_kv_heads=HEADS, rows_per_token=PER_TOKEN, windows=(window, None)
    )
    dense = [[torch.randn(n, HEADS, DIM) for n in lengths] for _ in range(2)]
    slots = [
        tables[i, np.arange(n) // SIZE].astype(np.int64) * SIZE + np.arange(n) % SIZE
        for i, n in enumerate(lengths)
    ]
    for tensor, rows in zip((kv.k, kv.v), dense, strict=True):
        for slot, values in zip(slots, rows, strict=True):  # all but the new tokens are there already
            where = torch.from_numpy(slot[:, None] * PER_TOKEN + np.arange(HEADS)).reshape(-1)
            tensor.index_copy_(0, where, values.reshape(-1, DIM))
    new_slots = np.concatenate([s[n - q :] for s, q, n in zip(slots, queries, lengths, strict=True)])
    metadata = planner.plan(queries, lengths, tables, new_slots)
    assert [s.gather_rows is not None for s in metadata.spans[window]] == [
        is_split and i < 3 for i in range(4)
    ]
    new = [torch.cat([r[n - q :] for r, q, n in zip(rows, queries, lengths, strict=True)]) for rows in dense]
    q = torch.randn(int(queries.sum()), HEADS * GROUPS, DIM)
    backend = ContiguousAttention(select_kernels(), rows_per_token=PER_TOKEN)
    out = backend.forward(q, new[0], new[1], kv, metadata, scale=SCALE, window=window)
    start = 0
    for i, count in enumerate(queries.tolist()):
        wanted = expected(q[start : start + count], dense[0][i], dense[1][i], window)
        torch.testing.assert_close(out[start : start + count].double(), wanted, rtol=1e-5, atol=1e-5)
        start += count


def test_tokens_that_are_not_stored_leave_no_trace() -> None:
    planner = ContiguousPlanner(
        block_size=SIZE, num_kv_heads=HEADS, rows_per_token=PER_TOKEN, windows=(None,)
    )
    tables = np.zeros((1, 1), dtype=np.int32)
    metadata = planner.plan([2], [2], tables, np.array([-1, 1]))
    assert metadata.write_tokens is not None and metadata.write_tokens.tolist() == [1]
    assert metadata.write_rows.tolist() == [PER_TOKEN, PER_TOKEN + 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in KERNEL_TABLE.names() if n.startswith("contiguous_attention.")])
def test_every_kernel_reads_through_strides(name: str, dtype: torch.dtype) -> None:
    """Keys and values are views with gaps of NaN."""
    torch.manual_seed(2)
    pool = torch.full((20, 40), float("nan"), dtype=dtype)
    k, v = (pool.as_strided((9, HEADS, DIM), (80, DIM, 1), offset) for offset in (0, HEADS * DIM))
    k.copy_(torch.randn(k.shape))
    v.copy_(torch.randn(v.shape))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}[dtype]
    kernel = KERNEL_TABLE.load(name)
    for count in (1, 3):
        q = torch.randn(count, HEADS * GROUPS, DIM).to(dtype)
        tiles = ()
        if count > 1:
            visible = torch.arange(9) <= torch.arange(9 - count, 9)[:, None]
            tiles = (Tile(count, 0, visible[None, None]),)
        got = kernel(q, k, v, tiles, SCALE)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected(q, k, v, None), rtol=0, atol=tolerance)
