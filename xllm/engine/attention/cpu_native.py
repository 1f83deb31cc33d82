"""Planner and backend of the CPU kernels, for both memory layouts: blocks and pages are read where they lie.

There is nothing to gather and nothing to mask in advance, so planning is two index computations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.attention.metadata import AttentionMetadata, IntArray
from xllm.engine.attention.step_index import StepIndex
from xllm.engine.kernels import Kernels
from xllm.engine.kernels.kv_write.native import store_pairs
from xllm.engine.kernels.paged_attention.native import KVStrides, StepRows, paged_attention
from xllm.engine.memory import LayerKV, can_be_paired
from xllm.engine.platform.native import required_library
from xllm.types.kv_layout import KVLayout, KVOrder

_KEYS = itertools.count(1)


class NativePlanner:
    """Plans the metadata of every step; the counterpart of AttentionPlanner and ContiguousPlanner."""

    def __init__(
        self,
        *,
        block_size: int,
        num_kv_heads: int,
        rows_per_token: int | None,
        names_of: Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]] | None = None,
    ) -> None:
        """Which step planner this is.

        Args:
            rows_per_token: of the contiguous layout, in rows of ``head_dim`` numbers; None: blocks.
            names_of: block numbers -> names, equal where rows share a block; None: the numbers are.
        """
        self._names_of = names_of
        self._block_size = block_size
        self._rows_per_token = rows_per_token
        self._heads = np.arange(num_kv_heads, dtype=np.int64)

    def plan(
        self,
        query_lens: npt.ArrayLike,
        seq_lens: npt.ArrayLike,
        block_tables: npt.NDArray[np.int32],
        slot_mapping: IntArray,
    ) -> AttentionMetadata:
        """Plan a step; arguments as for AttentionPlanner.plan."""
        index = StepIndex.of(query_lens, seq_lens, slot_mapping)
        tables = np.ascontiguousarray(block_tables, dtype=np.int32)
        names = None if self._names_of is None else self._names_of(tables)
        return index.metadata(tables, self._rows(index.slots), block_names=names)

    def _rows(self, slots: IntArray) -> IntArray:
        """Rows ``[W, H]`` of ``head_dim`` numbers that tokens in these slots have in a layer."""
        if self._rows_per_token is not None:
            return slots[:, None] * self._rows_per_token + self._heads
        blocks, offsets = np.divmod(slots, self._block_size)
        rows: IntArray = (blocks[:, None] * len(self._heads) + self._heads) * self._block_size
        return rows + offsets[:, None]


class NativeAttention:
    """Stores new keys and values, then attends all rows in one call."""

    def __init__(
        self,
        kernels: Kernels,
        *,
        block_size: int | None,
        rows_per_token: int | None,
        are_prefixes_shared: bool = True,
    ) -> None:
        """``block_size``: of the contiguous layout, whose shape does not tell; None: blocks ``[N, H, P, K]``."""
        self._write = kernels.kv_write
        self._block_size = block_size
        self._rows_per_token = rows_per_token
        self._are_prefixes_shared = are_prefixes_shared
        self._rows: tuple[AttentionMetadata, StepRows] | None = None

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
        if kv.is_paired:
            store_pairs((kv.k, kv.v), k, v, metadata.write_rows, metadata.write_tokens)
        else:
            self._write(kv.k, k, metadata.write_rows, metadata.write_tokens)
            self._write(kv.v, v, metadata.write_rows, metadata.write_tokens)
        rows = self.step_rows(metadata)
        if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
            q = q.contiguous()
        return paged_attention(q, (kv.k, kv.v), self.strides(kv), k.shape[1], rows, scale, window)

    def fastest_order(self, layout: KVLayout) -> KVOrder:
        """The order of tokens in a block that is read fastest here."""
        is_in_blocks = self._rows_per_token is None
        has_dot = required_library().has_dot_bf16
        return "pairs" if is_in_blocks and has_dot and can_be_paired(layout) else "tokens"

    def step_rows(self, metadata: AttentionMetadata) -> StepRows:
        """The rows of a step under a key of their own, the same for all its layers."""
        if self._rows is None or self._rows[0] is not metadata:
            tables = np.ascontiguousarray(metadata.block_tables, dtype=np.int32)
            rows = StepRows(
                metadata.query_start,
                metadata.seq_lens,
                tables,
                next(_KEYS),
                self._are_prefixes_shared,
                metadata.block_names,
            )
            self._rows = (metadata, rows)
        return self._rows[1]

    def strides(self, kv: LayerKV) -> KVStrides:
        """How the tokens of a layer lie."""
        dim = kv.k.shape[-1]
        if self._rows_per_token is not None:
            assert self._block_size is not None, "the contiguous layout has blocks of a said size"
            token = self._rows_per_token * dim
            return KVStrides(self._block_size, block=self._block_size * token, head=dim, token=token)
        _, num_heads, size, _ = kv.k.shape
        return KVStrides(size, num_heads * size * dim, size * dim, dim, kv.is_paired)
