"""Attention of the CPU library over random shapes, in every variant this CPU runs, and over prefixes that rows share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from tests.numeric.pairs import keys_in_pairs, values_in_pairs
from xllm.engine.kernels.paged_attention.native import KVStrides, StepRows, paged_attention
from xllm.engine.platform import native

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

TOLERANCE = {torch.float32: 6e-6, torch.bfloat16: 2e-2}
SCALE = 0.3


@dataclass(frozen=True)
class Pools:
    """Random keys and values in blocks; token t of a table lies in slot t."""

    k: torch.Tensor
    v: torch.Tensor
    is_paired: bool = False
    """Whether the kernels get them in pairs order; k and v are in tokens order anyway."""

    @staticmethod
    def make(num_blocks: int, kv_heads: int, size: int, dim: int, dtype: torch.dtype, seed: int) -> Pools:
        generator = torch.Generator().manual_seed(seed)
        shape = (num_blocks, kv_heads, size, dim)
        return Pools(*(torch.randn(shape, generator=generator).to(dtype) for _ in range(2)))

    def run(
        self,
        q: torch.Tensor,
        rows: StepRows,
        window: int | None = None,
        *,
        split_below: int | None = None,
        are_shared: bool = True,
    ) -> torch.Tensor:
        _, heads, size, dim = self.k.shape
        rows = replace(rows, are_prefixes_shared=are_shared)
        strides = KVStrides(size, heads * size * dim, size * dim, dim, self.is_paired)
        pools = (keys_in_pairs(self.k), values_in_pairs(self.v)) if self.is_paired else (self.k, self.v)
        return paged_attention(q, pools, strides, heads, rows, SCALE, window, split_below=split_below)

    def expected(self, q: torch.Tensor, rows: StepRows, window: int | None) -> torch.Tensor:
        """Float64, sequence by sequence."""
        out = torch.empty(q.shape, dtype=torch.float64)
        kv_heads = self.k.shape[1]
        for i, length in enumerate(rows.seq_lens.tolist()):
            begin, end = rows.query_start[i : i + 2].tolist()
            if begin == end:
                continue
            table = torch.from_numpy(rows.block_tables[i].astype(np.int64))
            k, v = (pool[table].transpose(1, 2).flatten(0, 1)[:length].double() for pool in (self.k, self.v))
            grouped = q[begin:end].double().unflatten(1, (kv_heads, -1))
            at, keys = torch.arange(length - (end - begin), length)[:, None], torch.arange(length)
            hidden = (keys > at) | (keys <= at - (window or length + 1))
            scores = torch.einsum("qhgd,khd->hgqk", grouped, k) * SCALE
            weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
            out[begin:end] = torch.einsum("hgqk,khd->qhgd", weights, v).flatten(1, 2)
        return out


def step_rows(counts: list[int], lengths: list[int], tables: np.ndarray) -> StepRows:
    start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return StepRows(start, np.array(lengths, dtype=np.int64), np.ascontiguousarray(tables, dtype=np.int32))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(variant: str, dtype: torch.dtype, seed: int) -> None:
    """1 to 17 heads per group, odd head sizes, any block size, mixed chunks and decodes, a sequence without tokens."""
    draw = np.random.default_rng(seed)
    group, kv_heads = int(draw.integers(1, 18)), int(draw.integers(1, 4))
    dim = int(draw.choice([8, 16, 31, 32, 64, 80, 96, 128, 160]))
    size = int(draw.choice([1, 3, 16, 32, 100]))
    window = None if seed % 3 else int(draw.integers(1, 200))
    counts = [int(n) for n in draw.choice([1, 1, 1, 2, 5, 70], 5)] + [0, 1]
    lengths = [n + int(draw.integers(0, 300)) for n in counts[:-1]] + [1]
    num_blocks = -(-max(lengths) // size)
    tables = draw.permutation(len(counts) * num_blocks).reshape(len(counts), num_blocks)
    pools = Pools.make(tables.size, kv_heads, size, dim, dtype, seed)
    rows = step_rows(counts, lengths, tables)
    q = torch.randn(sum(counts), kv_heads * group, dim, generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )
    expected = pools.expected(q, rows, window)
    tolerance = TOLERANCE[dtype] * max(1.0, dim / 64)
    torch.testing.assert_close(pools.run(q, rows, window).double(), expected, rtol=0, atol=tolerance)


LONG = [1, 63, 64, 65, 1023, 1025, 4099, 65536]


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_long_contexts(variant: str, dtype: torch.dtype, dim: int) -> None:
    """Sampled lengths up to 64k, and each as part of a batch; few rows, which wide heads attend run by run."""
    pools, rows = long_step([1] * len(LONG), LONG, dim, dtype)
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(len(LONG), 3, dim, generator=generator).to(dtype)
    got, expected = pools.run(q, rows), pools.expected(q, rows, None)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, dim / 64))
    assert torch.equal(got, pools.run(q, rows, split_below=0))
    if dtype == torch.bfloat16 and dim % 32 == 0:
        assert torch.equal(got, replace(pools, is_paired=True).run(q, rows))


@pytest.mark.parametrize("dim", [16, 128])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_a_chunk_of_a_long_prompt(variant: str, dtype: torch.dtype, dim: int) -> None:
    """Forty new tokens after 40,960: more rows than pass run by run, beside a decode that passes so."""
    pools, rows = long_step([40, 1], [41_000, 40_999], dim, dtype)
    q = torch.randn(41, 3, dim, generator=torch.Generator().manual_seed(2)).to(dtype)
    got, expected = pools.run(q, rows), pools.expected(q, rows, None)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, dim / 64))
    assert torch.equal(got, pools.run(q, rows, split_below=10**6))
    if dtype == torch.bfloat16 and dim % 32 == 0:
        assert torch.equal(got, replace(pools, is_paired=True).run(q, rows))


def long_step(counts: list[int], lengths: list[int], dim: int, dtype: torch.dtype) -> tuple[Pools, StepRows]:
    """Rows over the same blocks of 64 tokens, each in an order of its own."""
    size, draw = 64, np.random.default_rng(1)
    pools = Pools.make(-(-max(lengths) // size) + 5, 1, size, dim, dtype, 1)
    tables = np.stack([draw.permutation(len(pools.k))[: -(-max(lengths) // size)] for _ in lengths])
    return pools, step_rows(counts, lengths, tables)


SHARED = [
    # keys in common with the first sequence, new tokens, length
    (1184, 1, 1184),
    (1104, 1, 1200),
    (1104, 1, 1300),
    (720, 3, 1203),
    (720, 1, 721),
    (1104, 17, 1170),
    (1104, 100, 1250),
    (0, 1, 700),
    (48, 1, 500),
    (0, 1, 5),
    (64, 1, 65),
    (64, 1, 64),
]


def shared_step(dtype: torch.dtype, group: int, dim: int) -> tuple[Pools, torch.Tensor, StepRows]:
    """A tree: sequences 1, 2, 5 and 6 share more with each other than with the first; order shuffled."""
    size, draw = 16, np.random.default_rng(2)
    width = 1312 // size
    fresh = iter(draw.permutation(width * len(SHARED)))
    tables = np.zeros((len(SHARED), width), dtype=np.int32)
    for i, (common, _, length) in enumerate(SHARED):
        kept = common // size if i else 0
        tables[i, :kept] = tables[0, :kept]
        used = -(-length // size)
        tables[i, kept:used] = [next(fresh) for _ in range(used - kept)]
    for i in (2, 5):
        tables[i, 1104 // size : 1136 // size] = tables[1, 1104 // size : 1136 // size]
    order = draw.permutation(len(SHARED))
    counts, lengths = ([SHARED[i][j] for i in order] for j in (1, 2))
    pools = Pools.make(width * len(SHARED), 2, size, dim, dtype, 4)
    rows = step_rows(counts, lengths, tables[order])
    q = torch.randn(sum(counts), 2 * group, dim, generator=torch.Generator().manual_seed(5)).to(dtype)
    return pools, q, rows


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("group", "dim"), [(2, 128), (3, 40)])
def test_shared_prefixes_change_no_bit(variant: str, dtype: torch.dtype, group: int, dim: int) -> None:
    pools, q, rows = shared_step(dtype, group, dim)
    apart = pools.run(q, rows, split_below=0, are_shared=False)
    torch.testing.assert_close(
        apart.double(), pools.expected(q, rows, None), rtol=0, atol=2 * TOLERANCE[dtype]
    )
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for split in (0, 10**6):
                assert torch.equal(apart, pools.run(q, rows, split_below=split)), (count, split)
    finally:
        torch.set_num_threads(threads)
    for i in range(len(rows.seq_lens)):  # and none of the batch
        begin, end = rows.query_start[i : i + 2]
        alone = replace(
            rows,
            query_start=np.array([0, end - begin], dtype=np.int64),
            seq_lens=rows.seq_lens[i : i + 1],
            block_tables=rows.block_tables[i : i + 1],
        )
        assert torch.equal(pools.run(q[begin:end], alone), apart[begin:end])


def test_a_window_sees_no_group() -> None:
    """Rows of a group would need every key of the prefix; a window hides some."""
    pools, q, rows = shared_step(torch.bfloat16, 2, 64)
    for window in (100, 5000):
        got = pools.run(q, rows, window)
        assert torch.equal(got, pools.run(q, rows, window, are_shared=False))
        torch.testing.assert_close(got.double(), pools.expected(q, rows, window), rtol=0, atol=4e-2)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("dim", [32, 128])
def test_pages_of_the_contiguous_layout(variant: str, dtype: torch.dtype, dim: int) -> None:
    """As XTensor lays them out: a token's keys and values of all layers follow each other, each row has addresses of
    its own, and names say which pages are the same one. Layers beside this one hold NaN."""
    pools, q, rows = shared_step(dtype, 2, dim)
    _, heads, size, _ = pools.k.shape
    num_layers, table = 2, torch.from_numpy(rows.block_tables.reshape(-1).astype(np.int64))
    memory = torch.full((len(table), size, num_layers, 2, heads, dim), float("nan"), dtype=dtype)
    for part, pool in enumerate((pools.k, pools.v)):
        memory[:, :, 1, part] = pool[table].transpose(1, 2)
    token = num_layers * 2 * heads * dim
    strides = KVStrides(size, block=size * token, head=dim, token=token)
    places = np.arange(len(table), dtype=np.int32).reshape(rows.block_tables.shape)
    library = native.required_library()
    found = []
    for are_shared in (True, False):
        named = replace(
            rows, block_tables=places, block_names=rows.block_tables, are_prefixes_shared=are_shared
        )
        before = library.num_shared_tiles
        found.append(
            paged_attention(q, (memory[:, :, 1, 0], memory[:, :, 1, 1]), strides, heads, named, SCALE, None)
        )
        assert (library.num_shared_tiles > before) == are_shared
    tolerance = 2 * TOLERANCE[dtype] * max(1.0, dim / 64)
    torch.testing.assert_close(found[0].double(), pools.expected(q, rows, None), rtol=0, atol=tolerance)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], pools.run(q, rows))
