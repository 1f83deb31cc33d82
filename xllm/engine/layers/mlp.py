"""Gated MLP."""

from __future__ import annotations

import torch
from torch import nn

from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.linear import Linear
from xllm.engine.layers.sources import Source


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` with gate and up as one matrix."""

    def __init__(self, build: BuildContext, hidden_size: int, intermediate_size: int, *, bias: bool) -> None:
        super().__init__()
        self._silu_mul = build.kernels.silu_mul
        sizes = (intermediate_size, intermediate_size)
        self.gate_up = Linear(build, hidden_size, sizes, bias=bias)
        self.down = Linear(build, intermediate_size, (hidden_size,), bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` -> ``[T, D]``."""
        return self.down(self._silu_mul(self.gate_up(x)))

    def sources(self, name: str) -> list[Source]:
        """``name`` of the block in the checkpoint."""
        return [
            *self.gate_up.sources([f"{name}.gate_proj", f"{name}.up_proj"]),
            *self.down.sources([f"{name}.down_proj"]),
        ]
