"""The hole for attention backends."""

from __future__ import annotations

from typing import Protocol

import torch

from xllm.engine.attention.metadata import AttentionMetadata
from xllm.engine.memory import LayerKV


class AttentionBackend(Protocol):
    """One object serves all layers, one after another; no call leaves anything that another depends on."""

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: LayerKV,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """``q [T, H, K]``, ``k`` and ``v [T, G, K]`` -> ``[T, H, K]``.

        Side effect: the new keys and values of all rows are in ``kv`` before any row attends, so a row may
        read blocks that another row of the step fills. ``window`` must be one the metadata was planned for.
        """
