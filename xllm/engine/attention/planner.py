"""AttentionPlanner: from lengths and block tables to gather indices and masks, once per step, with numpy.

Rows with equally many queries (up to ``MAX_DENSE_QUERIES``; decodes have one) are attended together, padded
to the longest of the group; a group is cut where padding would waste more than it saves or the gathered
bytes exceed the platform's limit. A longer chunk is a group of its own, in tiles of queries that each see a
prefix of the keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.attention.metadata import AttentionMetadata, IntArray, RowGroup
from xllm.engine.kernels.paged_attention.reference import MAX_DENSE_QUERIES, Tile

TILE_QUERIES = 128
MAX_PADDING = 1.3
"""A group is cut when its padded length exceeds this multiple of its shortest row (unless rows are tiny)."""
TINY_TOKENS = 128
"""Below this length padding costs less than another group."""


class AttentionPlanner:
    """Plans the metadata of every step of one model over one KV pool."""

    def __init__(
        self,
        *,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        windows: Sequence[int | None],
        device: torch.device,
        max_gather_bytes: int,
    ) -> None:
        """``windows``: of the layers, repeats allowed; ``max_gather_bytes``: bounds K + V of one group."""
        self._block_size = block_size
        self._heads = np.arange(num_kv_heads, dtype=np.int64)
        self._windows = tuple(dict.fromkeys(windows))
        self._device = device
        self._max_gather_tokens = max(max_gather_bytes // (2 * num_kv_heads * head_dim * dtype.itemsize), 1)

    def plan(
        self,
        query_lens: npt.ArrayLike,
        seq_lens: npt.ArrayLike,
        block_tables: npt.NDArray[np.int32],
        slot_mapping: IntArray,
    ) -> AttentionMetadata:
        """Plan a step.

        Args:
            query_lens: ``[S]`` new tokens per row, >= 1.
            seq_lens: ``[S]`` tokens per row including the new ones.
            block_tables: int32 ``[S, M]``.
            slot_mapping: int64 ``[T]``: block * block_size + offset of each new token; -1 = not stored.
        """
        queries = np.asarray(query_lens, dtype=np.int64)
        lengths = np.asarray(seq_lens, dtype=np.int64)
        assert queries.min() >= 1 and (queries <= lengths).all(), (
            "every row has new tokens, within its length"
        )
        start = np.zeros(len(queries) + 1, dtype=np.int64)
        np.cumsum(queries, out=start[1:])
        assert len(slot_mapping) == start[-1], "one slot per token"
        stored = np.flatnonzero(slot_mapping >= 0)
        all_stored = len(stored) == len(slot_mapping)
        slots = slot_mapping if all_stored else slot_mapping[stored]
        blocks, offsets = np.divmod(slots, self._block_size)
        write_rows = (blocks[:, None] * len(self._heads) + self._heads) * self._block_size + offsets[:, None]
        return AttentionMetadata(
            num_seqs=len(queries),
            num_tokens=int(start[-1]),
            max_query_len=int(queries.max()),
            query_start=start,
            seq_lens=lengths,
            block_tables=block_tables,
            write_rows=self._to_device(write_rows.reshape(-1)),
            write_tokens=None if all_stored else self._to_device(stored),
            groups={
                window: tuple(self._groups(queries, lengths, start, block_tables, window))
                for window in self._windows
            },
        )

    def _groups(
        self,
        queries: IntArray,
        lengths: IntArray,
        start: IntArray,
        tables: npt.NDArray[np.int32],
        window: int | None,
    ) -> Iterator[RowGroup]:
        first_seen = np.zeros_like(lengths)
        if window is not None:
            first_seen = np.maximum(lengths - queries - window + 1, 0)
        first_block = first_seen // self._block_size
        num_blocks = -(-lengths // self._block_size) - first_block
        order = np.lexsort((num_blocks, queries))
        for members in self._cut(order, queries, num_blocks):
            if queries[members[0]] <= MAX_DENSE_QUERIES:
                yield self._dense_group(members, queries, lengths, start, tables, first_block, window)
            else:
                for row in members:
                    yield self._tiled_group(int(row), queries, lengths, start, tables, first_block, window)

    def _cut(self, order: IntArray, queries: IntArray, num_blocks: IntArray) -> Iterator[IntArray]:
        """Cut rows sorted by (queries, blocks) into groups."""
        begin = 0
        for i in range(1, len(order) + 1):
            if i < len(order):
                longest = int(num_blocks[order[i]]) * self._block_size
                shortest = int(num_blocks[order[begin]]) * self._block_size
                same = queries[order[i]] == queries[order[begin]]
                padded = longest > max(shortest * MAX_PADDING, TINY_TOKENS)
                if same and not padded and longest * (i - begin + 1) <= self._max_gather_tokens:
                    continue
            yield order[begin:i]
            begin = i

    def _gather_rows(self, tables: npt.NDArray[np.int32], blocks: IntArray) -> torch.Tensor:
        """``tables [R, M]``, ``blocks [R, B]`` (positions in the table) -> ``[R * H * B]``."""
        numbers = np.take_along_axis(tables, blocks, axis=1).astype(np.int64)
        rows = numbers[:, None, :] * len(self._heads) + self._heads[None, :, None]
        return self._to_device(rows.reshape(-1))

    def _dense_group(
        self,
        members: IntArray,
        queries: IntArray,
        lengths: IntArray,
        start: IntArray,
        tables: npt.NDArray[np.int32],
        first_block: IntArray,
        window: int | None,
    ) -> RowGroup:
        num_queries = int(queries[members[0]])
        first = first_block[members]
        last = -(-lengths[members] // self._block_size) - 1
        width = int((last - first).max()) + 1
        # Padding repeats a row's own first block: its own values, never somebody else's.
        steps = np.arange(width)
        blocks = np.where(steps <= (last - first)[:, None], first[:, None] + steps, first[:, None])
        visible_end = lengths[members] - first * self._block_size
        keys = np.arange(width * self._block_size)
        hidden = None
        if num_queries > 1 or window is not None or (visible_end < len(keys)).any():
            position = (visible_end - num_queries)[:, None] + np.arange(num_queries)
            covered = keys > position[:, :, None]
            if window is not None:
                covered |= keys <= position[:, :, None] - window
            hidden = self._to_device(covered[:, None, None])
        tokens = start[members][:, None] + np.arange(num_queries)
        return RowGroup(
            num_rows=len(members),
            num_queries=num_queries,
            tokens=self._tokens(tokens.reshape(-1)),
            gather_rows=self._gather_rows(tables[members], blocks),
            stale_rows=self._stale_rows(blocks == last[:, None], lengths[members]),
            hidden=hidden,
            tiles=(),
        )

    def _stale_rows(self, is_last: npt.NDArray[np.bool_], lengths: IntArray) -> torch.Tensor | None:
        """Gathered rows of the slots behind the end of each row, wherever its last block was gathered."""
        row, step = np.nonzero(is_last)
        offsets = np.arange(self._block_size)
        item, offset = np.nonzero(offsets > ((lengths - 1) % self._block_size)[row][:, None])
        if not len(item):
            return None
        length = is_last.shape[1] * self._block_size
        key = step[item] * self._block_size + offset
        heads = row[item][:, None] * len(self._heads) + self._heads
        return self._to_device((heads * length + key[:, None]).reshape(-1))

    def _tiled_group(
        self,
        row: int,
        queries: IntArray,
        lengths: IntArray,
        start: IntArray,
        tables: npt.NDArray[np.int32],
        first_block: IntArray,
        window: int | None,
    ) -> RowGroup:
        num_queries, first = int(queries[row]), int(first_block[row])
        visible_end = int(lengths[row]) - first * self._block_size
        tiles = []
        for begin in range(0, num_queries, TILE_QUERIES):
            count = min(TILE_QUERIES, num_queries - begin)
            position = visible_end - num_queries + begin + np.arange(count)
            first_key = 0 if window is None else max(int(position[0]) - window + 1, 0)
            keys = np.arange(first_key, position[-1] + 1)
            visible = keys <= position[:, None]
            if window is not None:
                visible &= keys > position[:, None] - window
            tiles.append(Tile(count, first_key, self._to_device(visible[None, None])))
        num_blocks = -(-visible_end // self._block_size)
        blocks = first + np.arange(num_blocks)[None]
        return RowGroup(
            num_rows=1,
            num_queries=num_queries,
            tokens=slice(int(start[row]), int(start[row + 1])),
            gather_rows=self._gather_rows(tables[row : row + 1], blocks),
            stale_rows=None,
            hidden=None,
            tiles=tuple(tiles),
        )

    def _tokens(self, tokens: IntArray) -> slice | torch.Tensor:
        if (np.diff(tokens) == 1).all():
            return slice(int(tokens[0]), int(tokens[-1]) + 1)
        return self._to_device(tokens)

    def _to_device(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
