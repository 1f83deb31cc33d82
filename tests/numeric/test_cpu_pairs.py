"""Keys and values in pairs order give the same bits as one token after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_struct

from tests.fakes.compiler import HAS_COMPILER
from tests.numeric.pairs import keys_in_pairs, values_in_pairs
from xllm.config.model_spec import ModelSpec, RopeSpec
from xllm.engine.attention import NativeAttention, NativePlanner
from xllm.engine.kernels.kv_write.native import store_pairs
from xllm.engine.kernels.kv_write.reference import kv_write
from xllm.engine.kernels.paged_attention.native import KVStrides, StepRows, paged_attention
from xllm.engine.layers.build_context import build_context
from xllm.engine.memory import KVPool, can_be_paired
from xllm.engine.models import ModelInput, NullHooks, build_model
from xllm.engine.models.native_layers import NativeLayers
from xllm.engine.runner.dummy_weights import fill_with_dummy_weights
from xllm.types.kv_layout import build_attention_layout

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

BF16 = torch.bfloat16
ROWS = [
    (1, 1),
    (1, 37),
    (5, 5),
    (3, 70),
    (1, 64),
    (60, 130),
    (2, 65),
    (1, 129),
    (1, 1100),
    (4, 2049),
    (1, 31),
]
"""(new tokens, length)"""


@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "size"),
    [(8, 2, 128, 16), (1, 1, 32, 32), (3, 5, 96, 16), (2, 7, 64, 48), (40, 1, 64, 16), (2, 17, 32, 16)],
)
@pytest.mark.parametrize("window", [None, 50])
def test_attention(variant: str, kv_heads: int, group: int, dim: int, size: int, window: int | None) -> None:
    """Mixed rows, some with a common prefix; what lies where no token is yet is NaN."""
    generator = torch.Generator().manual_seed(3)
    counts = [-(-length // size) for _, length in ROWS]
    order = torch.randperm(sum(counts), generator=generator).tolist()
    tables = np.zeros((len(ROWS), max(counts)), dtype=np.int32)
    for i, count in enumerate(counts):
        tables[i, :count] = [order.pop() for _ in range(count)]
    tables[9, : 1008 // size] = tables[8, : 1008 // size]
    k, v = (torch.full((sum(counts), kv_heads, size, dim), float("nan"), dtype=BF16) for _ in range(2))
    for pool in (k, v):
        for table, (_, length) in zip(tables, ROWS, strict=True):
            for at in range(0, length, size):
                n = min(size, length - at)
                block = torch.randn(kv_heads, n, dim, generator=generator).to(BF16)
                pool[int(table[at // size]), :, :n] = block
    start = np.concatenate(([0], np.cumsum([n for n, _ in ROWS]))).astype(np.int64)
    rows = StepRows(start, np.array([n for _, n in ROWS], dtype=np.int64), tables)
    q = torch.randn(int(start[-1]), kv_heads * group, dim, generator=generator).to(BF16)
    plain = KVStrides(size, kv_heads * size * dim, size * dim, dim)
    paired = KVStrides(size, kv_heads * size * dim, size * dim, dim, is_paired=True)
    pools = (keys_in_pairs(k), values_in_pairs(v))
    expected = paged_attention(q, (k, v), plain, kv_heads, rows, 0.1, window)
    assert not expected.isnan().any()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for split in (0, 6, 10**6):
                got = paged_attention(q, pools, paired, kv_heads, rows, 0.1, window, split_below=split)
                assert torch.equal(got, expected), (count, split)
    finally:
        torch.set_num_threads(threads)


def test_new_tokens_are_stored_where_they_belong(variant: str) -> None:
    k, v = (torch.randn(9, 2, 64).to(BF16) for _ in range(2))
    blocks, heads, size = 5, 2, 32
    slots = np.array([31, 0, 33, 159, 64])
    tokens = torch.tensor([8, 0, 3, 4, 7])
    rows = (slots // size * heads)[:, None] * size + np.arange(heads) * size + (slots % size)[:, None]
    pool_rows = torch.from_numpy(rows.reshape(-1))
    plain, pairs = ([torch.zeros(blocks, heads, size, 64, dtype=BF16) for _ in range(2)] for _ in range(2))
    for pool, new in zip(plain, (k, v), strict=True):
        kv_write(pool, new, pool_rows, tokens)
    store_pairs((pairs[0], pairs[1]), k, v, pool_rows, tokens)
    assert torch.equal(pairs[0], keys_in_pairs(plain[0]))
    assert torch.equal(pairs[1], values_in_pairs(plain[1]))


SPEC = ModelSpec(
    architecture="Qwen3ForCausalLM",
    hidden_size=128,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=131,
    max_position=4096,
    rms_norm_eps=1e-6,
    rope=RopeSpec(),
    tie_word_embeddings=True,
    has_qk_norm=True,
    windows=(None, 40),
)


def test_whole_layers(variant: str) -> None:
    """Layers in one call and operation by operation, chunks and decodes, over pools of both orders."""
    context = build_context(BF16, torch.device("cpu"))
    model = build_model(SPEC, context).eval()
    fill_with_dummy_weights(model, 7)
    model.pack()
    assert isinstance(context.attention, NativeAttention)
    layout = SPEC.kv_layout(block_size=16, dtype="bfloat16")
    planner = NativePlanner(block_size=16, num_kv_heads=2, rows_per_token=None)
    tables = np.array([[3, 1, 7, 9, 4, 10, 11, 12], [0, 2, 8, 5, 6, 13, 14, 15]], dtype=np.int32)
    found, pools = [], []
    for layout_ in (layout, replace_struct(layout, order="pairs")):
        for layers in (NativeLayers(model, context.attention).forward, model):
            pool = KVPool(layout_, 16, torch.device("cpu"))
            outs = []
            for queries, start in (([90, 5], [0, 0]), ([1, 60], [90, 5]), ([1, 1], [91, 65])):
                at = [np.arange(b, b + n) for n, b in zip(queries, start, strict=True)]
                slots = [tables[i, a // 16] * 16 + a % 16 for i, a in enumerate(at)]
                positions = np.concatenate(at)
                inp = ModelInput(
                    token_ids=torch.from_numpy((positions * 37 + 11) % 131),
                    positions=torch.from_numpy(positions),
                    attention=planner.plan(
                        queries, np.add(start, queries), tables, np.concatenate(slots).astype(np.int64)
                    ),
                    logits_indices=torch.arange(len(positions)),
                )
                with torch.inference_mode():
                    outs.append(layers(inp, pool, NullHooks()))
            found.append(torch.cat(outs))
            pools.append(pool)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    for plain, pairs in zip(pools[:2], pools[2:], strict=True):
        for layer in range(2):
            a, b = plain.layer(layer), pairs.layer(layer)
            assert torch.equal(keys_in_pairs(a.k), b.k) and not torch.equal(a.k, b.k)
            assert torch.equal(values_in_pairs(a.v), b.v) and not torch.equal(a.v, b.v)


def test_only_where_runs_and_vectors_are_whole() -> None:
    def layout(size: int = 16, dim: int = 64, dtype: str = "bfloat16") -> bool:
        return can_be_paired(
            build_attention_layout(block_size=size, num_layers=1, num_kv_heads=1, head_dim=dim, dtype=dtype)
        )

    assert layout() and layout(size=64, dim=512)
    assert not layout(size=8) and not layout(size=24) and not layout(dim=80) and not layout(dim=544)
    assert not layout(dtype="float32")
