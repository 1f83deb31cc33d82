"""StepIndex: the rows of a step as arrays, what the planner of every layout begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.attention.metadata import AttentionMetadata, IntArray, RowGroup, RowSpan


@dataclass(frozen=True, slots=True)
class StepIndex:
    """Of S rows with T new tokens, W of which are stored. Dense host arrays."""

    queries: IntArray
    """``[S]`` new tokens."""
    lengths: IntArray
    """``[S]``, including the new tokens."""
    start: IntArray
    """``[S + 1]``: where each row's tokens begin."""
    stored: IntArray | None
    """``[W]``: which tokens are stored; None = all."""
    slots: IntArray
    """``[W]``: theirs."""

    @classmethod
    def of(cls, query_lens: npt.ArrayLike, seq_lens: npt.ArrayLike, slot_mapping: IntArray) -> StepIndex:
        """See :class:`AttentionPlanner` for the arguments."""
        queries = np.ascontiguousarray(query_lens, dtype=np.int64)
        lengths = np.ascontiguousarray(seq_lens, dtype=np.int64)
        start = np.zeros(len(queries) + 1, dtype=np.int64)
        np.cumsum(queries, out=start[1:])
        stored = np.flatnonzero(slot_mapping >= 0)
        if len(stored) == len(slot_mapping):
            return cls(queries, lengths, start, None, slot_mapping)
        return cls(queries, lengths, start, stored, slot_mapping[stored])

    def metadata(
        self,
        block_tables: npt.NDArray[np.int32],
        write_rows: IntArray,
        *,
        device: torch.device | None = None,
        block_names: npt.NDArray[np.int32] | None = None,
        groups: Mapping[int | None, tuple[RowGroup, ...]] | None = None,
        spans: Mapping[int | None, tuple[RowSpan, ...]] | None = None,
    ) -> AttentionMetadata:
        """With ``write_rows [W, H]``; None of ``device``: the host's memory, not copied."""
        rows = torch.from_numpy(write_rows.reshape(-1))
        stored = None if self.stored is None else torch.from_numpy(self.stored)
        if device is not None:
            rows = rows.to(device)
            stored = None if stored is None else stored.to(device)
        return AttentionMetadata(
            num_seqs=len(self.queries),
            num_tokens=int(self.start[-1]),
            max_query_len=int(self.queries.max()),
            query_start=self.start,
            seq_lens=self.lengths,
            block_tables=block_tables,
            block_names=block_names,
            write_rows=rows,
            write_tokens=stored,
            groups={} if groups is None else groups,
            spans={} if spans is None else spans,
        )
