"""Attention over keys and values where they lie, for any mix of chunks and decodes in one call (csrc/attention.h).

The arithmetic of a query depends on its own sequence only: not on the batch, the chunking or the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.platform.native import TYPES, AttentionArgs, required_library

UNITS_PER_THREAD = 3
"""Long rows are split over their keys when there is less work to share out than this."""


@dataclass(frozen=True, slots=True)
class KVStrides:
    """Where a token of a block lies, in elements from the first of the layer."""

    block_size: int
    block: int
    head: int
    token: int
    is_paired: bool = False
    """Pairs order, see the KV pool; ``token`` is then what 16 of them have on average."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step: S rows, T tokens, M blocks per table. Dense host arrays, alive during the call."""

    query_start: npt.NDArray[np.int64]
    """``[S + 1]``"""
    seq_lens: npt.NDArray[np.int64]
    """``[S]``, including the new tokens."""
    block_tables: npt.NDArray[np.int32]
    """``[S, M]``"""
    key: int = 0
    """Names these rows in this process: calls with the same key share their plan; 0 = never."""
    are_prefixes_shared: bool = True
    """Whether rows whose tables begin alike read those blocks once; results do not depend on it."""
    block_names: npt.NDArray[np.int32] | None = None
    """``[S, M]``, what says whether they begin alike; None: the tables themselves."""


def attention_args(
    rows: StepRows, strides: KVStrides, *, num_heads: int, num_kv_heads: int, head_dim: int, num_threads: int
) -> AttentionArgs:
    """What all layers of a step share."""
    names = rows.block_tables if rows.block_names is None else rows.block_names
    return AttentionArgs(
        tables=rows.block_tables.ctypes.data,
        names=names.ctypes.data,
        query_start=rows.query_start.ctypes.data,
        seq_lens=rows.seq_lens.ctypes.data,
        num_seqs=len(rows.seq_lens),
        table_stride=rows.block_tables.shape[1],
        heads=num_heads,
        kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=strides.block_size,
        block_stride=strides.block,
        head_stride=strides.head,
        token_stride=strides.token,
        split_below=UNITS_PER_THREAD * num_threads if num_threads > 1 else 0,
        are_shared=rows.are_prefixes_shared,
        is_paired=strides.is_paired,
    )


def paged_attention(
    q: torch.Tensor,
    pools: tuple[torch.Tensor, torch.Tensor],
    strides: KVStrides,
    num_kv_heads: int,
    rows: StepRows,
    scale: float,
    window: int | None,
    *,
    split_below: int | None = None,
) -> torch.Tensor:
    """Attend all rows.

    Args:
        q: ``[T, H, K]``, dense in H and K; float32 or bfloat16, as the pools.
        pools: K and V, each from the layer's first element on.
        strides: how blocks, heads and tokens lie in the pools.
        num_kv_heads: key/value heads; H is a multiple.
        rows: the step.
        scale: factor of the scores.
        window: tokens a query sees, itself included; None = all before it.
        split_below: overrides when long rows are split; results do not depend on it.

    Returns:
        ``[T, H, K]``.
    """
    library = required_library()
    num_tokens, num_heads, head_dim = q.shape
    assert q.stride(2) == 1 and q.stride(1) == head_dim, "heads are dense"
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype)
    threads = torch.get_num_threads()
    args = attention_args(
        rows, strides, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, num_threads=threads
    )
    args.q, args.out, args.q_stride = q.data_ptr(), out.data_ptr(), q.stride(0)
    args.k, args.v = pools[0].data_ptr(), pools[1].data_ptr()
    args.window, args.scale = window or 0, scale
    if split_below is not None:
        args.split_below = split_below
    library.lib.xllm_attention(TYPES[q.dtype], args, rows.key, threads)
    return out
