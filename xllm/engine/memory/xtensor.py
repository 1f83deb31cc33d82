"""XTensor: the KV of a sequence in one stretch of addresses, token after token, over pages that lie anywhere.

A token holds K and V of all layers: ``[layer, (k, v), head, dim]``. So one page serves a whole model for some
tokens, and the first token of a sequence costs one page, not one per layer. A layer sees rows of ``head_dim`` numbers:
head h of token t is row ``t * rows_per_token + h`` from the layer's first row on; t counts through the ranges and then
through the linear view of all pages (see :mod:`xllm.engine.memory.page_map`).
"""

from __future__ import annotations

import torch

from xllm.engine.memory.kv_memory import LayerKV
from xllm.engine.memory.mapper import MemfdMapper
from xllm.engine.memory.page_map import PageMap, ThreadBackground
from xllm.engine.memory.touch_ahead import TouchAhead
from xllm.engine.platform.platform import torch_dtype
from xllm.types.batch import Batch
from xllm.types.kv_layout import KVLayout
from xllm.types.pages import PageGeometry


class XTensor:
    """K and V of all layers of a one-group layout, in virtual ranges; host memory only."""

    def __init__(
        self, layout: KVLayout, num_pages: int, geometry: PageGeometry, *, touch_ahead_tokens: int = 0
    ) -> None:
        """Reserve the ranges and create ``num_pages`` pages; the system gives memory at first touch, that
        of ``touch_ahead_tokens`` more than are in use early.

        Raises:
            CapacityError: the addresses cannot be reserved.
        """
        assert len(layout.groups) == 1, "pages hold one group of layers"
        group = layout.groups[0]
        assert layout.bytes_per_block() == geometry.page_bytes, "a page is a block"
        k, v = group.components
        assert (k.name, v.name) == ("k", "v") and (k.dtype, k.shape) == (v.dtype, v.shape), "K and V alike"
        self.layout = layout
        self.geometry = geometry
        self.num_blocks = num_pages
        self.block_size = layout.block_size
        self.device = torch.device("cpu")
        self._mapper = MemfdMapper(geometry, num_pages)
        self.pages = PageMap(self._mapper, geometry, ThreadBackground())
        num_heads, head_dim = k.shape
        self.rows_per_token = 2 * len(group.layers) * num_heads
        raw = torch.frombuffer(self._mapper.buffer, dtype=torch_dtype(k.dtype))
        rows = raw.view(-1, head_dim)
        self._layers = {
            layer: LayerKV(rows[2 * i * num_heads :], rows[(2 * i + 1) * num_heads :])
            for i, layer in enumerate(group.layers)
        }
        first = geometry.num_ranges * geometry.pages_per_range
        self._linear = raw.view(first + num_pages, self.block_size, -1)[first:]
        self.touch_ahead = TouchAhead([self._linear], touch_ahead_tokens // self.block_size)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pages."""
        return self.num_blocks * self.geometry.page_bytes

    def place(self, batch: Batch) -> Batch:
        """Map what the step needs; see :class:`PageMap`."""
        for order in batch.page_orders:
            self.touch_ahead.saw(order.page)
        return self.pages.place(batch)

    def layer(self, index: int) -> LayerKV:
        """Rows ``[N, head_dim]`` from the layer's first K row, and from its first V row, on. Only mapped ones exist."""
        return self._layers[index]

    def tend(self) -> bool:
        """Touch some memory ahead."""
        return self.touch_ahead.touch()

    def copy_slots(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first tokens of a physical page."""
        self._linear[target, :num_slots].copy_(self._linear[source, :num_slots])
