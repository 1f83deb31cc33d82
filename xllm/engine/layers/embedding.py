"""Token embedding and output head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from xllm.engine.kernels.linear.native import PackedWeight, take_rows
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.linear import packed_parameter, packed_shapes_of
from xllm.engine.layers.sources import Source


class Embedding(nn.Module):
    """A ``[V, D]`` table: rows for tokens on the way in, or a projection on the way out."""

    def __init__(self, build: BuildContext, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self._linear = build.kernels.linear
        self._pack_weight = build.kernels.pack_weight
        self.weight = build.empty_parameter((vocab_size, hidden_size))
        self.packed: Any = None
        """The table as the linear kernel wants it; None before :meth:`pack`."""

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``[T]`` -> ``[T, D]``."""
        if isinstance(self.packed, PackedWeight):
            return take_rows(self.packed, token_ids)
        return functional.embedding(token_ids, self.weight)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[S, D]`` -> float32 ``[S, V]``."""
        weight = self.weight if self.packed is None else self.packed
        logits: torch.Tensor = self._linear(hidden, weight, None, torch.float32)
        return logits

    def packed_shapes(self) -> dict[str, tuple[int, ...]]:
        """See :class:`~xllm.engine.layers.sources.Packable`; for a table that is projected with."""
        return packed_shapes_of(self._linear, self.weight)

    def adopt(self, name: str, data: torch.Tensor) -> list[PackedWeight]:
        """See :class:`~xllm.engine.layers.sources.Packable`."""
        self.packed = PackedWeight(data, *self.weight.shape)
        self.weight = packed_parameter(self.packed, self.weight)
        return [self.packed]

    def pack(self) -> None:
        """For a table that is projected with: bring it into the linear kernel's order, keep no other copy."""
        if self.packed is None:
            self.packed = self._pack_weight(self.weight.data)
            self.weight = packed_parameter(self.packed, self.weight)

    def sources(self, name: str) -> list[Source]:
        """``name`` in the checkpoint, without ``.weight``."""
        return [Source(self.weight, f"{name}.weight")]
