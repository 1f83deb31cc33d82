"""Reference rotary embedding in the half-split convention: dimension i is paired with i + K/2."""

from __future__ import annotations

import torch


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads by their position.

    ``x [T, H, K]``; ``cos`` and ``sin``, float32 ``[T, 1, K]``: both halves equal, the first half of ``sin``
    negated. Computed in float32, returned in the dtype of ``x``.
    """
    wide = x.float()
    return torch.addcmul(wide * cos, wide.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)
