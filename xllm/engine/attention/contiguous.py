"""Attention for the contiguous layout: a row is a base address and a length; no block table, no gathering.

Rows attend one by one, each over exactly its own tokens, so what one row reads depends on no other row and nothing
unmapped is ever touched. A row with a page that could not be mapped (see :mod:`xllm.engine.memory.page_map`) gathers
its tokens instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.attention.metadata import AttentionMetadata, IntArray, RowSpan
from xllm.engine.attention.planner import TILE_QUERIES
from xllm.engine.attention.step_index import StepIndex
from xllm.engine.kernels import Kernels
from xllm.engine.kernels.paged_attention.reference import Tile
from xllm.engine.memory import LayerKV


class ContiguousPlanner:
    """Plans the metadata of every step of one model over one XTensor; the counterpart of AttentionPlanner."""

    def __init__(
        self, *, block_size: int, num_kv_heads: int, rows_per_token: int, windows: Sequence[int | None]
    ) -> None:
        self._block_size = block_size
        self._rows_per_token = rows_per_token
        self._heads = np.arange(num_kv_heads, dtype=np.int64)
        self._windows = tuple(dict.fromkeys(windows))

    def plan(
        self,
        query_lens: npt.ArrayLike,
        seq_lens: npt.ArrayLike,
        block_tables: npt.NDArray[np.int32],
        slot_mapping: IntArray,
    ) -> AttentionMetadata:
        """Plan a step; arguments as for AttentionPlanner.plan. Blocks that follow each other lie side by side."""
        index = StepIndex.of(query_lens, seq_lens, slot_mapping)
        write_rows = index.slots[:, None] * self._rows_per_token + self._heads
        spans = {
            w: tuple(self._spans(index.queries, index.lengths, index.start, block_tables, w))
            for w in self._windows
        }
        return index.metadata(block_tables, write_rows, spans=spans)

    def _spans(
        self,
        queries: IntArray,
        lengths: IntArray,
        start: IntArray,
        tables: npt.NDArray[np.int32],
        window: int | None,
    ) -> Iterator[RowSpan]:
        size = self._block_size
        is_split = self._is_split(lengths, tables)
        bases = tables[:, 0].astype(np.int64) * size
        rows = zip(queries.tolist(), lengths.tolist(), start.tolist(), bases.tolist(), is_split, strict=False)
        for i, (count, length, begin, base, split) in enumerate(rows):
            first = 0 if window is None else max(length - count - window + 1, 0)
            gather = None
            if split:
                position = np.arange(first, length)
                tokens = tables[i, position // size].astype(np.int64) * size + position % size
                runs = tokens[:, None] * self._rows_per_token + self._heads
                gather = torch.from_numpy(runs.reshape(-1))
            yield RowSpan(
                tokens=slice(begin, begin + count),
                first_row=(base + first) * self._rows_per_token,
                num_keys=length - first,
                gather_rows=gather,
                tiles=() if count == 1 else tuple(_tiles(count, length - first, window)),
            )

    def _is_split(self, lengths: IntArray, tables: npt.NDArray[np.int32]) -> list[bool]:
        """Which rows have blocks that do not follow each other."""
        if tables.shape[1] == 1:
            return [False] * len(lengths)
        steps = tables[:, 1:] - tables[:, :-1]
        last = -(-lengths // self._block_size) - 1
        is_inside = np.arange(tables.shape[1] - 1) < last[:, None]
        found: list[bool] = ((steps != 1) & is_inside).any(axis=1).tolist()
        return found


def _tiles(num_queries: int, num_keys: int, window: int | None) -> Iterator[Tile]:
    """Causal masks of the last ``num_queries`` of ``num_keys`` tokens, in parts that see a prefix of the keys."""
    for begin in range(0, num_queries, TILE_QUERIES):
        count = min(TILE_QUERIES, num_queries - begin)
        position = num_keys - num_queries + begin + np.arange(count)
        first_key = 0 if window is None else max(int(position[0]) - window + 1, 0)
        keys = np.arange(first_key, position[-1] + 1)
        visible = keys <= position[:, None]
        if window is not None:
            visible &= keys > position[:, None] - window
        yield Tile(count, first_key, torch.from_numpy(visible[None, None]))


class ContiguousAttention:
    """Stores new keys and values, then attends row by row; keeps nothing."""

    def __init__(self, kernels: Kernels, *, rows_per_token: int) -> None:
        self._write = kernels.kv_write
        self._attend = kernels.contiguous_attention
        self._rows_per_token = rows_per_token

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: LayerKV,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """See :class:`AttentionBackend`."""
        self._write(kv.k, k, metadata.write_rows, metadata.write_tokens)
        self._write(kv.v, v, metadata.write_rows, metadata.write_tokens)
        out = torch.empty_like(q)
        num_heads = k.shape[1]
        for span in metadata.spans[window]:
            keys = self._view(kv.k, span, num_heads)
            values = self._view(kv.v, span, num_heads)
            out[span.tokens] = self._attend(q[span.tokens], keys, values, span.tiles, scale)
        return out

    def _view(self, rows: torch.Tensor, span: RowSpan, num_heads: int) -> torch.Tensor:
        """``[N, H, K]``: the span's tokens where they lie, or gathered."""
        head_dim = rows.shape[1]
        if span.gather_rows is not None:
            return rows.index_select(0, span.gather_rows).view(span.num_keys, num_heads, head_dim)
        return rows.as_strided(
            (span.num_keys, num_heads, head_dim),
            (self._rows_per_token * head_dim, head_dim, 1),
            rows.storage_offset() + span.first_row * head_dim,
        )
