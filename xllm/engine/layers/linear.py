"""Linear projections, plain and fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source, fused_sources


class Linear(nn.Module):
    """``x [T, in] -> [T, sum(outs)]``: one or several projections of the same input as one matrix."""

    def __init__(
        self,
        build: BuildContext,
        num_in: int,
        num_outs: Sequence[int],
        *,
        bias: bool,
    ) -> None:
        super().__init__()
        self._linear = build.kernels.linear
        self.num_outs = tuple(num_outs)
        self.weight = build.empty_parameter((sum(num_outs), num_in))
        self.bias = build.empty_parameter((sum(num_outs),)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply."""
        return self._linear(x, self.weight, self.bias)

    def sources(self, names: Sequence[str]) -> list[Source]:
        """``names`` of the projections in the checkpoint, without ``.weight`` and ``.bias``."""
        found = fused_sources(self.weight, [f"{n}.weight" for n in names], self.num_outs)
        if self.bias is not None:
            found += fused_sources(self.bias, [f"{n}.bias" for n in names], self.num_outs)
        return found
