"""RMSNorm."""

from __future__ import annotations

import torch
from torch import nn

from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, build: BuildContext, size: int, eps: float) -> None:
        super().__init__()
        self._rms_norm = build.kernels.rms_norm
        self._eps = eps
        self.weight = build.empty_parameter((size,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., size]`` -> the same shape and dtype."""
        return self._rms_norm(x, self.weight, self._eps)

    def sources(self, name: str) -> list[Source]:
        """``name`` in the checkpoint, without ``.weight``."""
        return [Source(self.weight, f"{name}.weight")]
