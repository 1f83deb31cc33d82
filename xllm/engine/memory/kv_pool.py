"""KVPool: the bytes behind block numbers.

Shapes: N blocks, P slots per block (``block_size``), H key/value heads, K head dimension.

A layer holds K and V as ``[N, H, P, K]``: the slots of one head of one block are contiguous, so that
gathering a block table for batched matrix products is a copy of whole runs (row ``block * H + head`` of
``[N * H, P * K]``) and needs no transpose.

INVARIANTS
- Every block number below ``num_blocks`` is usable; there is no reserved block. A padding token has slot -1
  and is never written.
- The pool never decides: which block belongs to whom is planned elsewhere.
- Memory starts as zeros. Slots of a freed block keep old values; readers mask what lies beyond a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xllm.engine.memory.kv_memory import LayerKV
from xllm.engine.platform.host_memory import untouched_bytes
from xllm.engine.platform.platform import torch_dtype
from xllm.errors import CapacityError
from xllm.types.batch import Batch
from xllm.types.kv_layout import KVLayout


class KVPool:
    """K and V of all layers of a one-group layout."""

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        """Allocate ``num_blocks`` blocks.

        Raises:
            CapacityError: the device has not enough memory.
        """
        assert len(layout.groups) == 1, "the pool holds one group of layers"
        group = layout.groups[0]
        assert group.kind in ("full", "window"), f"no pool for {group.kind} groups"
        names = [c.name for c in group.components]
        assert names == ["k", "v"], f"expected components k and v, got {names}"
        self.layout = layout
        self.num_blocks = num_blocks
        self.block_size = layout.block_size
        self.device = device
        self._layers: dict[int, LayerKV] = {}
        try:
            for layer in group.layers:
                k, v = (
                    _zeros(
                        (num_blocks, c.shape[0], layout.block_size, c.shape[1]), torch_dtype(c.dtype), device
                    )
                    for c in group.components
                )
                self._layers[layer] = LayerKV(k, v)
        except (RuntimeError, MemoryError) as exc:
            size = num_blocks * layout.bytes_per_block()
            raise CapacityError(
                f"cannot allocate {num_blocks} KV blocks, {size / 2**30:.2f} GiB, on {device}: {exc}",
                status=503,
                hint="give the cache less memory",
            ) from exc

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.layout.bytes_per_block()

    def place(self, batch: Batch) -> Batch:
        """Every block is where it always is."""
        return batch

    def layer(self, index: int) -> LayerKV:
        """K and V of a layer, ``[N, H, P, K]`` each, by its number in the whole model."""
        return self._layers[index]

    def copy_slots(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first slots of a block in every layer (the tail of a forked sequence)."""
        for kv in self._layers.values():
            kv.k[target, :, :num_slots].copy_(kv.k[source, :, :num_slots])
            kv.v[target, :, :num_slots].copy_(kv.v[source, :, :num_slots])

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole blocks in every layer; no target may be a source."""
        source = torch.as_tensor(sources, dtype=torch.int64, device=self.device)
        target = torch.as_tensor(targets, dtype=torch.int64, device=self.device)
        for kv in self._layers.values():
            kv.k.index_copy_(0, target, kv.k.index_select(0, source))
            kv.v.index_copy_(0, target, kv.v.index_select(0, source))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the host in pages that the kernel hands out (zeroed) at first touch, so that a big pool costs no
    start-up time and no memory before it is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return untouched_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
