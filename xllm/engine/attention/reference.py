"""The torch backend: correct for any mix of chunks and decodes, and the reference of all others."""

from __future__ import annotations

import torch

from xllm.engine.attention.metadata import AttentionMetadata
from xllm.engine.kernels import Kernels
from xllm.engine.kernels.paged_attention.reference import Workspace
from xllm.engine.memory import LayerKV


class ReferenceAttention:
    """Stores new keys and values, then attends group by group; keeps nothing but working memory."""

    def __init__(self, kernels: Kernels) -> None:
        self._write = kernels.kv_write
        self._attend = kernels.paged_attention
        self._workspaces = (Workspace(), Workspace())

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
        """See :class:`AttentionBackend`."""
        self._write(kv.k, k, metadata.write_rows, metadata.write_tokens)
        self._write(kv.v, v, metadata.write_rows, metadata.write_tokens)
        out = torch.empty_like(q)
        pools = (kv.k, kv.v)
        for group in metadata.groups[window]:
            shape = (group.num_rows, group.num_queries, *q.shape[1:])
            part = self._attend(
                q[group.tokens].view(shape),
                pools,
                group.gather_rows,
                group.stale_rows,
                group.hidden,
                group.tiles,
                scale,
                self._workspaces,
            )
            out[group.tokens] = part.reshape(-1, *q.shape[1:])
        return out
