"""The hole for attention backends."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.attention.metadata import AttentionMetadata, IntArray
from xllm.engine.memory import LayerKV


class StepPlanner(Protocol):
    """Plans the metadata of a step once for all layers; goes with a backend and a memory layout."""

    def plan(
        self,
        query_lens: npt.ArrayLike,
        seq_lens: npt.ArrayLike,
        block_tables: npt.NDArray[np.int32],
        slot_mapping: IntArray,
    ) -> AttentionMetadata:
        """``query_lens`` and ``seq_lens [S]``, ``block_tables [S, M]``, ``slot_mapping [T]`` (-1 = not stored)."""
        ...


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
