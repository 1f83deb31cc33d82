"""AttentionMetadata: the rows of a step as attention sees them, the same for every layer.

Shapes: S rows (sequences), T tokens, M blocks per table, H key/value heads, P slots per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.kernels.paged_attention.reference import Tile

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows with equally many queries that are attended together."""

    num_rows: int
    num_queries: int
    """Per row."""
    tokens: slice | torch.Tensor
    """Where the queries lie among the T tokens: a slice, or int64 indices, row by row."""
    gather_rows: torch.Tensor
    """int64, see the paged attention kernel."""
    stale_rows: torch.Tensor | None
    hidden: torch.Tensor | None
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpan:
    """One row in the contiguous layout: where its visible tokens begin, and how many they are."""

    tokens: slice
    """Its queries among the T tokens."""
    first_row: int
    """Of its first visible token, counted in rows of ``head_dim`` numbers from the layer's first one."""
    num_keys: int
    gather_rows: torch.Tensor | None
    """int64 ``[num_keys * H]``: rows to gather where the tokens do not follow each other; None: they do."""
    tiles: tuple[Tile, ...]
    """Empty for a single query."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMetadata:
    """One step. Host arrays are for planning, tensors live on the device."""

    num_seqs: int
    num_tokens: int
    max_query_len: int
    query_start: IntArray
    """``[S + 1]``: tokens ``query_start[i] .. query_start[i + 1]`` belong to row i."""
    seq_lens: IntArray
    """``[S]``, including the new tokens."""
    block_tables: npt.NDArray[np.int32]
    """``[S, M]``; entries beyond a row's blocks, or behind its window, are not read."""
    block_names: npt.NDArray[np.int32] | None = None
    """The same shape: equal where rows share a block that lies at a number of its own for each; None: the tables."""
    write_rows: torch.Tensor
    """int64 ``[W * H]``: pool rows of the written tokens, see the KV write kernel."""
    write_tokens: torch.Tensor | None
    """int64 ``[W]``: which tokens are written; None = all."""
    groups: Mapping[int | None, tuple[RowGroup, ...]]
    """Per window of the model's layers (None = full attention): all rows, in groups."""
    spans: Mapping[int | None, tuple[RowSpan, ...]] = field(default_factory=dict)
    """The same for the contiguous layout, which has no groups."""
