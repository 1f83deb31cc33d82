"""BuildContext: what every layer is built with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from xllm.engine.attention import AttentionBackend, ContiguousAttention, ReferenceAttention
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


def build_context(
    dtype: torch.dtype, device: torch.device, *, contiguous_rows_per_token: int | None = None
) -> BuildContext:
    """The best kernels of the device, and the backend of the memory layout.

    ``contiguous_rows_per_token``: rows of ``head_dim`` numbers per token of the contiguous layout; None: block tables.
    """
    kernels = select_kernels(device.type)
    attention: AttentionBackend = ReferenceAttention(kernels)
    if contiguous_rows_per_token is not None:
        attention = ContiguousAttention(kernels, rows_per_token=contiguous_rows_per_token)
    return BuildContext(kernels, attention, dtype, device)
