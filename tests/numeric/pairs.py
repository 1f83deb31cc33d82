"""Pools in tokens order ``[N, H, P, K]`` as pools in pairs order (csrc/parts.h)."""

from __future__ import annotations

import torch


def keys_in_pairs(pool: torch.Tensor) -> torch.Tensor:
    blocks, heads, size, dim = pool.shape
    runs = pool.view(blocks, heads, size // 16, 16, dim // 2, 2)
    return runs.transpose(3, 4).reshape(pool.shape)


def values_in_pairs(pool: torch.Tensor) -> torch.Tensor:
    blocks, heads, size, dim = pool.shape
    return pool.view(blocks, heads, size // 2, 2, dim).transpose(3, 4).reshape(pool.shape)
