"""KVPool: the bytes behind block numbers.

Shapes: N blocks, P slots per block (``block_size``), H key/value heads, K head dimension.

A layer holds K and V as ``[N, H, P, K]``: the slots of one head of one block are contiguous, so that
gathering a block table for batched matrix products is a copy of whole runs (row ``block * H + head`` of
``[N * H, P * K]``) and needs no transpose.

In **pairs order** the shape is the same, but every 16 slots of a head are interleaved as bf16 dot products read
them: keys as ``[K / 2, 16, 2]`` (the same two numbers of 16 keys side by side), values as ``[8, K, 2]`` (two tokens
side by side). Only the CPU kernels read and write it; whole blocks move like any others.

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
from xllm.engine.memory.touch_ahead import TouchAhead
from xllm.engine.platform.host_memory import untouched_bytes
from xllm.engine.platform.platform import torch_dtype
from xllm.errors import CapacityError
from xllm.types.batch import Batch
from xllm.types.kv_layout import KVLayout

PAIRED_RUN = 16
"""Tokens that are interleaved in pairs order."""
MAX_PAIRED_DIM = 512
"""Of csrc/parts.h."""


def can_be_paired(layout: KVLayout) -> bool:
    """Whether pairs order exists for a layout: bfloat16, whole runs in a block, whole vectors in a head."""
    shapes = [c for g in layout.groups for c in g.components]
    return layout.block_size % PAIRED_RUN == 0 and all(
        c.dtype == "bfloat16" and len(c.shape) == 2 and c.shape[1] % 32 == 0 and c.shape[1] <= MAX_PAIRED_DIM
        for c in shapes
    )


class KVPool:
    """K and V of all layers of a one-group layout."""

    def __init__(
        self, layout: KVLayout, num_blocks: int, device: torch.device, *, touch_ahead_tokens: int = 0
    ) -> None:
        """Allocate ``num_blocks`` blocks; host memory of ``touch_ahead_tokens`` more than are in use is touched early.

        Raises:
            CapacityError: the device has not enough memory.
        """
        assert len(layout.groups) == 1, "the pool holds one group of layers"
        group = layout.groups[0]
        assert group.kind in ("full", "window"), f"no pool for {group.kind} groups"
        names = [c.name for c in group.components]
        assert names == ["k", "v"], f"expected components k and v, got {names}"
        assert layout.order == "tokens" or can_be_paired(layout), f"no pairs order for {layout}"
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
                self._layers[layer] = LayerKV(k, v, layout.order == "pairs")
        except (RuntimeError, MemoryError) as exc:
            size = num_blocks * layout.bytes_per_block()
            raise CapacityError(
                f"cannot allocate {num_blocks} KV blocks, {size / 2**30:.2f} GiB, on {device}: {exc}",
                status=503,
                hint="give the cache less memory",
            ) from exc

        tensors = [t for kv in self._layers.values() for t in (kv.k, kv.v)]
        num_ahead = touch_ahead_tokens // layout.block_size if device.type == "cpu" else 0
        self.touch_ahead = TouchAhead(tensors, num_ahead)

    @property
    def num_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.num_blocks * self.layout.bytes_per_block()

    def place(self, batch: Batch) -> Batch:
        """Every block is where it always is."""
        if not self.touch_ahead.is_on:
            return batch
        for new in batch.new_rows:
            self.touch_ahead.saw(max(new.block_tables[0], default=-1))
        for row in batch.rows:
            if row.new_block_ids:
                self.touch_ahead.saw(max(row.new_block_ids[0], default=-1))
        return batch

    def tend(self) -> bool:
        """Touch some memory ahead."""
        return self.touch_ahead.touch()

    def layer(self, index: int) -> LayerKV:
        """K and V of a layer, ``[N, H, P, K]`` each, by its number in the whole model."""
        return self._layers[index]

    def copy_slots(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first slots of a block in every layer (the tail of a forked sequence); in pairs order whole runs."""
        if self.layout.order == "pairs":
            num_slots = -(-num_slots // PAIRED_RUN) * PAIRED_RUN
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
