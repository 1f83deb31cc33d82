"""BuildContext: what every layer is built with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from xllm.engine.attention import AttentionBackend, ReferenceAttention
from xllm.engine.kernels import Kernels, select_kernels


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Kernels, attention backend, and where and in which type weights live."""

    kernels: Kernels
    attention: AttentionBackend
    dtype: torch.dtype
    device: torch.device

    def empty_parameter(self, shape: Sequence[int]) -> nn.Parameter:
        """An uninitialised weight; the loader fills every element."""
        data = torch.empty(tuple(shape), dtype=self.dtype, device=self.device)
        return nn.Parameter(data, requires_grad=False)


def build_context(dtype: torch.dtype, device: torch.device) -> BuildContext:
    """The best kernels and backend of the device."""
    kernels = select_kernels(device.type)
    return BuildContext(kernels, ReferenceAttention(kernels), dtype, device)
