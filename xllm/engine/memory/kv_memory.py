"""KVMemory: the hole for memory layouts of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from xllm.types.batch import Batch
from xllm.types.kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class LayerKV:
    """K and V of one layer; their shape is a matter between the memory and the attention that goes with it."""

    k: torch.Tensor
    v: torch.Tensor
    is_paired: bool = False
    """Whether the tokens of a block lie in pairs order, see the KV pool."""


class KVMemory(Protocol):
    """K and V of all layers, addressed by block number."""

    layout: KVLayout
    block_size: int
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        ...

    def place(self, batch: Batch) -> Batch:
        """Make the blocks of a step reachable, before anything else of it; returns it with the numbers to use."""
        ...

    def layer(self, index: int) -> LayerKV:
        """K and V of a layer, by its number in the whole model."""
        ...

    def tend(self) -> bool:
        """Nothing runs: do a few milliseconds of what makes later steps faster. False: there is nothing."""
        ...

    def copy_slots(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first slots of a block, as the brain numbers it, in every layer."""
