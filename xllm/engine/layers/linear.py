"""Linear projections, plain and fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xllm.engine.kernels.linear import native
from xllm.engine.kernels.linear.native import PackedWeight, packed_shape
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source, fused_sources


def packed_shapes_of(linear: Any, weight: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of ``weight [O, I]`` as the kernel keeps it; nothing where it takes the checkpoint's."""
    num_out, num_in = weight.shape
    shape = packed_shape(num_out, num_in, weight.dtype) if linear is native.linear else None
    return {} if shape is None else {"weight": shape}


def packed_parameter(packed: Any, weight: nn.Parameter) -> nn.Parameter:
    """What a module keeps as its parameter, so that memory is counted once: the packed bytes."""
    return nn.Parameter(packed.data, requires_grad=False) if isinstance(packed, PackedWeight) else weight


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
        self._pack_weight = build.kernels.pack_weight
        self.num_outs = tuple(num_outs)
        self.weight = build.empty_parameter((sum(num_outs), num_in))
        self.bias = build.empty_parameter((sum(num_outs),)) if bias else None
        self.packed: Any = None
        """The weight as the kernel wants it; None before :meth:`pack`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply."""
        return self._linear(x, self.weight if self.packed is None else self.packed, self.bias)

    def packed_shapes(self) -> dict[str, tuple[int, ...]]:
        """See :class:`~xllm.engine.layers.sources.Packable`."""
        return packed_shapes_of(self._linear, self.weight)

    def adopt(self, name: str, data: torch.Tensor) -> list[PackedWeight]:
        """See :class:`~xllm.engine.layers.sources.Packable`."""
        self.packed = PackedWeight(data, *self.weight.shape)
        self.weight = packed_parameter(self.packed, self.weight)
        return [self.packed]

    def pack(self) -> None:
        """Bring the loaded weight into the kernel's order; the loaded copy is dropped."""
        if self.packed is None:
            self.packed = self._pack_weight(self.weight.data)
            self.weight = packed_parameter(self.packed, self.weight)

    def sources(self, names: Sequence[str]) -> list[Source]:
        """``names`` of the projections in the checkpoint, without ``.weight`` and ``.bias``."""
        found = fused_sources(self.weight, [f"{n}.weight" for n in names], self.num_outs)
        if self.bias is not None:
            found += fused_sources(self.bias, [f"{n}.bias" for n in names], self.num_outs)
        return found
