"""BuildContext: what every layer is built with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from xllm.engine.attention import AttentionBackend, ContiguousAttention, NativeAttention, ReferenceAttention
from xllm.engine.kernels import KERNEL_TABLE, Kernels, choose_kernels, load_kernels


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Kernels, attention backend, and where and in which type weights live."""

    kernels: Kernels
    attention: AttentionBackend
    dtype: torch.dtype
    device: torch.device
    are_native: bool = False
    """Whether every operation that the CPU library has is computed by it."""

    def empty_parameter(self, shape: Sequence[int]) -> nn.Parameter:
        """An uninitialised weight; the loader fills every element."""
        data = torch.empty(tuple(shape), dtype=self.dtype, device=self.device)
        return nn.Parameter(data, requires_grad=False)


def build_context(
    dtype: torch.dtype,
    device: torch.device,
    *,
    contiguous_rows_per_token: int | None = None,
    block_size: int | None = None,
    kernels: Mapping[str, str] | None = None,
    are_prefixes_shared: bool = True,
) -> BuildContext:
    """The best kernels of the device, and the backend of the memory layout.

    Args:
        contiguous_rows_per_token: rows of ``head_dim`` numbers per token of the contiguous layout; None: block tables.
        block_size: tokens per page of the contiguous layout.
        kernels: operation -> implementation, over the best.
        are_prefixes_shared: whether rows with a common prefix read it once, where the backend can.

    Raises:
        ConfigError: an implementation does not exist or cannot run here.
    """
    chosen = choose_kernels(device.type, kernels)
    if dtype not in (torch.float32, torch.bfloat16):
        chosen["paged_attention"] = "reference"
    loaded = load_kernels(chosen)
    attention: AttentionBackend
    if chosen["paged_attention"] == "native":
        attention = NativeAttention(
            loaded,
            block_size=block_size,
            rows_per_token=contiguous_rows_per_token,
            are_prefixes_shared=are_prefixes_shared,
        )
    elif contiguous_rows_per_token is not None:
        attention = ContiguousAttention(loaded, rows_per_token=contiguous_rows_per_token)
    else:
        attention = ReferenceAttention(loaded)
    are_native = all(name == "native" for op, name in chosen.items() if f"{op}.native" in KERNEL_TABLE)
    return BuildContext(loaded, attention, dtype, device, are_native)
