"""ModelInput: everything a forward reads; nothing comes from a global."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xllm.engine.attention import AttentionMetadata


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInput:
    """The tokens of one step, rows one after another."""

    token_ids: torch.Tensor
    """int64 ``[T]``."""
    positions: torch.Tensor
    """int64 ``[T]``; ``[3, T]`` is reserved for models with three position axes."""
    attention: AttentionMetadata
    """Lengths, block tables and slots of the rows."""
    logits_indices: torch.Tensor
    """int64 ``[S]``: which tokens' logits are wanted; the head runs on those only."""
    hidden: torch.Tensor | None = None
    """``[T, D]`` from the rank that holds the layers before; None on the first."""
    adapter_per_row: torch.Tensor | None = None
    """Reserved for LoRA: adapter slot of each row."""
    hidden_taps: tuple[int, ...] = ()
    """Reserved for speculation: layers whose outputs are wanted too."""
    media_gather: torch.Tensor | None = None
    """Reserved for vision: which tokens take their embedding from the encoder cache."""
