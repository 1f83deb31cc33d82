"""Source: which checkpoint tensor fills which part of a parameter; what a loader needs to know of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from xllm.engine.kernels.linear.native import PackedWeight


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor and its place: a parameter, one index of it, or a range of its rows."""

    parameter: torch.nn.Parameter
    name: str
    """In the checkpoint."""
    start: int = 0
    length: int = -1
    """Rows of the (indexed) parameter; -1 = all."""
    index: int = -1
    """Of an expert in a stacked parameter; -1 = not stacked."""

    @property
    def target(self) -> torch.Tensor:
        """The view to be filled."""
        view = self.parameter.data if self.index < 0 else self.parameter.data[self.index]
        return view if self.length < 0 else view[self.start : self.start + self.length]


@runtime_checkable
class Packable(Protocol):
    """A layer with matrices whose kernels want them in an order of their own."""

    def packed_shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters that are packed, and their shapes then; none where kernels take them as they are."""
        ...

    def adopt(self, name: str, data: torch.Tensor) -> list[PackedWeight]:
        """Take memory of that shape as the parameter, filled by now or later.

        Returns:
            The matrices in it: one, or one per index of a stacked parameter.
        """
        ...


def fused_sources(
    parameter: torch.nn.Parameter, names: Sequence[str], lengths: Sequence[int]
) -> list[Source]:
    """Tensors stacked along the first dimension of one parameter, in order."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [Source(parameter, n, s, length) for n, s, length in zip(names, starts, lengths, strict=True)]
