"""XTensor: the addresses of tokens, layers, heads; copies; memory of a first token."""

from __future__ import annotations

import torch

from tests.fakes.batches import make_request
from xllm.engine.memory import XTensor
from xllm.types.batch import Batch, BatchRow, NewRow, PageOrder
from xllm.types.kv_layout import build_attention_layout
from xllm.types.pages import PageGeometry

LAYERS, HEADS, DIM, SIZE = 3, 2, 64, 32  # 3 KiB per token in float32, 96 KiB per page


def make() -> XTensor:
    layout = build_attention_layout(
        block_size=SIZE, num_layers=LAYERS, num_kv_heads=HEADS, head_dim=DIM, dtype="float32"
    )
    geometry = PageGeometry(
        page_bytes=layout.bytes_per_block(),
        tokens_per_page=SIZE,
        pages_per_range=4,
        num_ranges=2,
        max_mappings=20,
    )
    return XTensor(layout, 6, geometry)


def introduce(kv: XTensor, row: int, range_id: int, *pages: int) -> Batch:
    new = NewRow(
        row=row, seq=row, request=make_request("a", (1,)), choice=0, token_ids=(1,),
        block_tables=(pages,), range_id=range_id,
    )  # fmt: skip
    orders = tuple(PageOrder("map", range_id, i, p) for i, p in enumerate(pages))
    rows = (BatchRow(row, 0, len(pages) * SIZE, ()),)
    return kv.place(Batch(step=1, rows=rows, new_rows=(new,), page_orders=orders))


def test_tokens_follow_each_other_through_pages_that_lie_anywhere() -> None:
    kv = make()
    introduce(kv, 0, 1, 5, 2)
    first = 4 * SIZE * kv.rows_per_token
    rows = torch.arange(2 * SIZE)[:, None] * kv.rows_per_token + torch.arange(HEADS) + first
    values = torch.randn(2, LAYERS, 2 * SIZE, HEADS, DIM)
    for layer in range(LAYERS):
        kv.layer(layer).k.index_copy_(0, rows.reshape(-1), values[0, layer].reshape(-1, DIM))
        kv.layer(layer).v.index_copy_(0, rows.reshape(-1), values[1, layer].reshape(-1, DIM))
    for layer in range(LAYERS):  # nobody wrote over anybody
        assert torch.equal(kv.layer(layer).k[rows], values[0, layer])
        assert torch.equal(kv.layer(layer).v[rows], values[1, layer])
    token = torch.stack((values[0], values[1]), 1)[:, :, SIZE].flatten()  # [layer, (k, v), head, dim]
    linear = (2 * 4 + 2) * SIZE * kv.rows_per_token
    assert torch.equal(kv.layer(0).k[linear : linear + kv.rows_per_token].flatten(), token)


def test_copies_go_by_page_and_touch_the_first_slots_only() -> None:
    kv = make()
    introduce(kv, 0, 0, 1)
    introduce(kv, 1, 1, 4)
    rows = kv.rows_per_token
    source = kv.layer(0).k[: SIZE * rows]
    source.copy_(torch.randn_like(source))
    kv.copy_slots(1, 4, 5)
    target = kv.layer(0).k[4 * SIZE * rows :][: SIZE * rows]
    assert torch.equal(target[: 5 * rows], source[: 5 * rows]) and not target[5 * rows :].any()


def test_sizes() -> None:
    kv = make()
    assert kv.num_bytes == 6 * 96 * 1024
    assert kv.rows_per_token == 2 * LAYERS * HEADS
    assert kv.layer(2).v.shape[1] == DIM
