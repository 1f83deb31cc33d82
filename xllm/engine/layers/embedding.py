"""Token embedding and output head."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source


class Embedding(nn.Module):
    """A ``[V, D]`` table: rows for tokens on the way in, or a projection on the way out."""

    def __init__(self, build: BuildContext, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = build.empty_parameter((vocab_size, hidden_size))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``[T]`` -> ``[T, D]``."""
        return functional.embedding(token_ids, self.weight)

    def sources(self, name: str) -> list[Source]:
        """``name`` in the checkpoint, without ``.weight``."""
        return [Source(self.weight, f"{name}.weight")]
