"""Reference gated activation."""

from __future__ import annotations

import torch
from torch.nn import functional


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` where ``gate_up [T, 2 I]`` holds gate first -> ``[T, I]``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
