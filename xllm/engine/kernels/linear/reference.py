"""Reference: torch's linear."""

from __future__ import annotations

import torch
from torch.nn import functional


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """The reference multiplies weights as the checkpoint has them."""
    return weight


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """``x [T, I] @ weight [O, I]^T (+ bias [O])`` -> ``[T, O]``, all of one dtype; ``out_dtype`` casts the result."""
    out = functional.linear(x, weight, bias)
    return out if out_dtype is None else out.to(out_dtype)
