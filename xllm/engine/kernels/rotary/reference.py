"""Reference rotary embedding in the half-split convention: dimension i is paired with i + K/2."""

from __future__ import annotations

import torch


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads by their position.

    ``x [T, H, K]``; ``cos`` and ``sin [T, 1, K/2]`` in float32. Computed in float32, returned in the dtype
    of ``x``.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half].float(), x[..., half:].float()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
