"""KVPool: shapes, sizes, copies."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from xllm.engine.memory import KVPool
from xllm.errors import CapacityError
from xllm.types.kv_layout import build_attention_layout

CPU = torch.device("cpu")


def make(num_blocks: int = 6, dtype: str = "float32") -> KVPool:
    layout = build_attention_layout(block_size=4, num_layers=3, num_kv_heads=2, head_dim=8, dtype=dtype)
    return KVPool(layout, num_blocks, CPU)


def test_shapes_and_bytes() -> None:
    pool = make(dtype="bfloat16")
    tensors = [t for i in range(3) for t in (pool.layer(i).k, pool.layer(i).v)]
    assert {tuple(t.shape) for t in tensors} == {(6, 2, 4, 8)}
    assert sum(t.numel() * t.element_size() for t in tensors) == pool.num_bytes
    assert all(not t.any() for t in tensors)


def test_copies_touch_every_layer_and_nothing_else() -> None:
    pool = make()
    for i in range(3):
        pool.layer(i).k.normal_()
        pool.layer(i).v.normal_()
    before = [t.clone() for i in range(3) for t in (pool.layer(i).k, pool.layer(i).v)]
    pool.copy_slots(1, 4, 3)
    pool.copy_blocks([0, 2], [5, 3])
    after = [t for i in range(3) for t in (pool.layer(i).k, pool.layer(i).v)]
    for old, new in zip(before, after, strict=True):
        expected = old.clone()
        expected[4, :, :3] = old[1, :, :3]
        expected[5], expected[3] = old[0], old[2]
        assert torch.equal(new, expected)


def test_in_pairs_order_a_copied_slot_brings_its_run() -> None:
    """Sixteen tokens are interleaved: the first five cannot be copied without the others."""
    layout = build_attention_layout(
        block_size=32, num_layers=1, num_kv_heads=2, head_dim=32, dtype="bfloat16"
    )
    pool = KVPool(replace(layout, order="pairs"), 3, CPU)
    pool.layer(0).k.normal_()
    pool.copy_slots(1, 2, 5)
    k = pool.layer(0).k
    assert pool.layer(0).is_paired
    assert torch.equal(k[2, :, :16], k[1, :, :16]) and not torch.equal(k[2, :, 16:], k[1, :, 16:])


def test_too_large_is_a_capacity_error() -> None:
    with pytest.raises(CapacityError, match="blocks"):
        make(num_blocks=10**12)
