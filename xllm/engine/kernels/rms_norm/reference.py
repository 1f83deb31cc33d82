"""Reference RMS norm: statistics, scaling and weight in float32, one rounding at the end."""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / rms(x) * weight`` over the last dimension of ``x [..., D]``; same shape and dtype as ``x``."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)
