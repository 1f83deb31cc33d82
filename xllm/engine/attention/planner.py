"""AttentionPlanner: from lengths and block tables to gather indices and masks, once per step, with numpy.

Rows with equally many queries (up to ``MAX_DENSE_QUERIES``; decodes have one) are attended together, padded
to the longest of the group; a group is cut where padding would waste more than it saves or the gathered
bytes exceed the platform's limit. A longer chunk is a group of its own, in tiles of queries that each see a
prefix of the keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.attention.metadata import AttentionMetadata, IntArray, RowGroup
from xllm.engine.attention.step_index import StepIndex
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
        index = StepIndex.of(query_lens, seq_lens, slot_mapping)
        queries, lengths, start = index.queries, index.lengths, index.start
        assert queries.min() >= 1 and (queries <= lengths).all(), (
            "every row has new tokens, within its length"
        )
        assert len(slot_mapping) == start[-1], "one slot per token"
        blocks, offsets = np.divmod(index.slots, self._block_size)
        write_rows = (blocks[:, None] * len(self._heads) + self._heads) * self._block_size + offsets[:, None]
        groups = {
            window: tuple(self._groups(queries, lengths, start, block_tables, window))
            for window in self._windows
        }
        return index.metadata(block_tables, write_rows, device=self._device, groups=groups)

    def _groups(
        self,
        queries: IntArray,
        lengths: IntArray,
        start: IntArray,
        tables: npt.NDArray[np.int32],
        window: int | None,
    ) -> Iterator[RowGroup]:
        first = np.zeros_like(lengths)
        if window is not None:
            first = np.maximum(lengths - queries - window + 1, 0) // self._block_size
        last = (lengths - 1) // self._block_size
        order = np.lexsort((last - first, queries))
        rows = _Rows(order, queries[order], lengths[order], start[order], first[order], last[order])
        for begin, end in self._cut(rows):
            part = rows.part(begin, end)
            if part.queries[0] <= MAX_DENSE_QUERIES:
                yield self._dense_group(part, tables, window)
            else:
                for i in range(end - begin):
                    yield self._tiled_group(part.part(i, i + 1), tables, window)

    def _cut(self, rows: _Rows) -> Iterator[tuple[int, int]]:
        """Cut rows sorted by (queries, blocks) into groups."""
        queries = rows.queries.tolist()
        tokens = ((rows.last - rows.first + 1) * self._block_size).tolist()
        begin, longest_allowed = 0, max(tokens[0] * MAX_PADDING, TINY_TOKENS)
        for i in range(1, len(queries)):
            longest = tokens[i]
            fits = longest <= longest_allowed and longest * (i - begin + 1) <= self._max_gather_tokens
            if fits and queries[i] == queries[begin]:
                continue
            yield begin, i
            begin, longest_allowed = i, max(longest * MAX_PADDING, TINY_TOKENS)
        yield begin, len(queries)

    def _gather_rows(self, numbers: npt.NDArray[np.int32]) -> torch.Tensor:
        """Block numbers ``[R, B]`` -> ``[R * H * B]``."""
        runs = numbers[:, None, :].astype(np.int64) * len(self._heads) + self._heads[:, None]
        return self._to_device(runs.reshape(-1))

    def _dense_group(self, rows: _Rows, tables: npt.NDArray[np.int32], window: int | None) -> RowGroup:
        num_queries = int(rows.queries[0])
        # Sorted by number of blocks: the last row has most, the first fewest.
        width = int(rows.last[-1] - rows.first[-1]) + 1
        blocks = rows.first[:, None] + np.arange(width)
        last = rows.last[:, None]
        if rows.last[0] - rows.first[0] + 1 < width:
            # Padding repeats a row's own first block: its own values, never somebody else's.
            blocks = np.where(blocks <= last, blocks, rows.first[:, None])
        visible_end = rows.lengths - rows.first * self._block_size
        num_keys = width * self._block_size
        hidden = None
        if num_queries > 1 or window is not None or int(visible_end.min()) < num_keys:
            keys = np.arange(num_keys)
            position = (visible_end - num_queries)[:, None] + np.arange(num_queries)
            covered = keys > position[:, :, None]
            if window is not None:
                covered |= keys <= position[:, :, None] - window
            hidden = self._to_device(covered[:, None, None])
        return RowGroup(
            num_rows=len(rows.order),
            num_queries=num_queries,
            tokens=self._tokens(rows.start, num_queries),
            gather_rows=self._gather_rows(tables[rows.order[:, None], blocks]),
            stale_rows=self._stale_rows(blocks == last, rows.lengths),
            hidden=hidden,
            tiles=(),
        )

    def _stale_rows(self, is_last: npt.NDArray[np.bool_], lengths: IntArray) -> torch.Tensor | None:
        """Gathered rows of the slots behind the end of each row, wherever its last block was gathered."""
        num_used = (lengths - 1) % self._block_size + 1
        if int(num_used.min()) == self._block_size:
            return None
        row, step = np.nonzero(is_last)
        item, offset = np.nonzero(np.arange(self._block_size) >= num_used[row, None])
        row, key = row[item], step[item] * self._block_size + offset
        heads = row[:, None] * len(self._heads) + self._heads
        num_keys = is_last.shape[1] * self._block_size
        return self._to_device((heads * num_keys + key[:, None]).reshape(-1))

    def _tiled_group(self, rows: _Rows, tables: npt.NDArray[np.int32], window: int | None) -> RowGroup:
        """One row."""
        num_queries, start, first, last = (
            int(a[0]) for a in (rows.queries, rows.start, rows.first, rows.last)
        )
        visible_end = int(rows.lengths[0]) - first * self._block_size
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
        return RowGroup(
            num_rows=1,
            num_queries=num_queries,
            tokens=slice(start, start + num_queries),
            gather_rows=self._gather_rows(tables[rows.order, first : last + 1]),
            stale_rows=None,
            hidden=None,
            tiles=tuple(tiles),
        )

    def _tokens(self, start: IntArray, num_queries: int) -> slice | torch.Tensor:
        """Tokens of rows that start there; a slice where they follow each other."""
        first, count = int(start[0]), len(start)
        if int(start[-1]) == first + (count - 1) * num_queries and bool(
            (start[1:] - start[:-1] == num_queries).all()
        ):
            return slice(first, first + count * num_queries)
        return self._to_device((start[:, None] + np.arange(num_queries)).reshape(-1))

    def _to_device(self, array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows sorted by (queries, blocks); all ``[R]``."""

    order: IntArray
    """Which rows of the step."""
    queries: IntArray
    lengths: IntArray
    start: IntArray
    """First token."""
    first: IntArray
    """First block that is visible, a position in the table."""
    last: IntArray

    def part(self, begin: int, end: int) -> _Rows:
        """Consecutive rows."""
        s = slice(begin, end)
        return _Rows(
            self.order[s], self.queries[s], self.lengths[s], self.start[s], self.first[s], self.last[s]
        )
