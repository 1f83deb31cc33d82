"""Reference paged attention: gather the blocks of a group of rows, then dense attention.

Shapes: R rows of the group, Q queries per row, L gathered tokens per row, H key/value heads, G query heads
per key/value head, K head dimension. The group dimension G is folded into matrix rows; ``enable_gqa`` would
repeat every key instead.

What lies beyond a row's length in its last block is whatever an earlier owner left, maybe NaN, and 0 * NaN is
NaN: masked values are zeroed, not only weighted with zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

MAX_DENSE_QUERIES = 16
"""Rows with more queries go alone, in tiles, through the fused kernel."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive queries and the gathered tokens, from ``first_key`` on, that they may see."""

    num_queries: int
    first_key: int
    mask: torch.Tensor
    """bool ``[1, 1, num_queries, keys]``, True = visible."""


class Workspace:
    """Memory for gathered blocks, kept between calls: fresh pages would cost more than the copy into them."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def take(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """An uninitialised tensor of that shape, of the dtype and device of ``like``."""
        size = math.prod(shape)
        buffer = self._buffer
        if (
            buffer is None
            or buffer.numel() < size
            or (buffer.dtype, buffer.device) != (like.dtype, like.device)
        ):
            buffer = self._buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)


def paged_attention(
    q: torch.Tensor,
    pools: tuple[torch.Tensor, torch.Tensor],
    gather_rows: torch.Tensor,
    stale_rows: torch.Tensor | None,
    hidden: torch.Tensor | None,
    tiles: tuple[Tile, ...],
    scale: float,
    workspaces: tuple[Workspace, Workspace],
) -> torch.Tensor:
    """Attention of R rows with Q queries each.

    Args:
        q: ``[R, Q, H * G, K]``.
        pools: K and V pools, ``[N, H, P, K]``.
        gather_rows: int64 ``[R * H * B]``: row ``block * H + head`` of the pool seen as ``[N * H, P * K]``,
            for B blocks per row.
        stale_rows: int64 rows of the gathered ``[R * H * L, K]`` beyond their row's length; None = none.
        hidden: bool ``[R, 1, 1, Q, L]``, True = not visible; None = everything is visible.
        tiles: empty, or (one row only, more than ``MAX_DENSE_QUERIES`` queries) split Q in order.
        scale: factor of the scores.
        workspaces: where K and V are gathered.

    Returns:
        ``[R, Q, H * G, K]``.
    """
    num_rows, num_queries, num_heads, head_dim = q.shape
    kv_heads = pools[0].shape[1]
    groups = num_heads // kv_heads
    k, v = (_gather(pool, gather_rows, workspace) for pool, workspace in zip(pools, workspaces, strict=True))
    if stale_rows is not None:
        v.index_fill_(0, stale_rows, 0.0)
    k, v = (x.view(num_rows, kv_heads, -1, head_dim) for x in (k, v))
    if not tiles:
        folded = q.view(num_rows, num_queries, kv_heads, groups, head_dim).permute(0, 2, 3, 1, 4)
        out = _dense(folded, k, v, hidden, scale)
        return out.permute(0, 3, 1, 2, 4).reshape(q.shape)
    return _tiled(q.view(num_queries, kv_heads, groups, head_dim), k[0], v[0], tiles, scale).view(q.shape)


def _gather(pool: torch.Tensor, gather_rows: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """Rows of the pool one after another, ``[R * H * L, K]``, valid until the workspace is used again."""
    runs = pool.view(pool.shape[0] * pool.shape[1], -1)
    gathered = workspace.take((len(gather_rows), runs.shape[1]), pool)
    torch.index_select(runs, 0, gather_rows, out=gathered)
    return gathered.view(-1, pool.shape[-1])


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """``q [R, H, G, Q, K]``, ``k`` and ``v [R, H, L, K]``, ``hidden [R, 1, 1, Q, L]`` -> like ``q``."""
    rows, heads, groups, queries, head_dim = q.shape
    batch = rows * heads
    length = k.shape[2]
    scaled = (q * scale).reshape(batch, groups * queries, head_dim)
    scores = torch.bmm(scaled, k.view(batch, length, head_dim).transpose(1, 2)).float()
    if hidden is not None:
        scores.view(rows, heads, groups, queries, length).masked_fill_(hidden, float("-inf"))
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    return torch.bmm(weights, v.view(batch, length, head_dim)).view(q.shape)


def _tiled(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tiles: tuple[Tile, ...], scale: float
) -> torch.Tensor:
    """One row: ``q [Q, H, G, K]``, ``k`` and ``v [H, L, K]`` -> ``[Q, H, G, K]``."""
    groups = q.shape[2]
    out = torch.empty_like(q)
    q = q.permute(1, 2, 0, 3)
    k, v = (x.unsqueeze(1).expand(-1, groups, -1, -1) for x in (k, v))
    start = 0
    for tile in tiles:
        end, last_key = start + tile.num_queries, tile.first_key + tile.mask.shape[-1]
        part = functional.scaled_dot_product_attention(
            q[:, :, start:end],
            k[:, :, tile.first_key : last_key],
            v[:, :, tile.first_key : last_key],
            attn_mask=tile.mask,
            scale=scale,
        )
        out[start:end] = part.permute(2, 0, 1, 3)
        start = end
    return out
