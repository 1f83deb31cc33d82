"""Reference: torch's linear."""

from __future__ import annotations

import torch
from torch.nn import functional


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x [T, I] @ weight [O, I]^T (+ bias [O])`` -> ``[T, O]``, all of one dtype."""
    return functional.linear(x, weight, bias)
