"""Self-attention."""

from __future__ import annotations

import torch
from torch import nn

from xllm.config.model_spec import ModelSpec
from xllm.engine.attention import AttentionMetadata
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.linear import Linear
from xllm.engine.layers.norm import RMSNorm
from xllm.engine.layers.sources import Source
from xllm.engine.memory import LayerKV


class SelfAttention(nn.Module):
    """Fused QKV, optional norm of queries and keys per head, rotary, attention over the cache, projection."""

    def __init__(self, build: BuildContext, spec: ModelSpec, layer: int) -> None:
        super().__init__()
        self._rotary = build.kernels.rotary
        self._backend = build.attention
        self._heads, self._kv_heads, self._head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._window = spec.windows[layer]
        sizes = [n * spec.head_dim for n in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)]
        self.qkv = Linear(build, spec.hidden_size, sizes, bias=spec.has_qkv_bias)
        self.out = Linear(build, sizes[0], (spec.hidden_size,), bias=spec.has_o_bias)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if spec.has_qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(build, spec.head_dim, spec.rms_norm_eps) for _ in range(2))

    def forward(
        self,
        x: torch.Tensor,
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        kv: LayerKV,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """``x [T, D]``, cos and sin ``[T, 1, K]`` -> ``[T, D]``; stores new keys and values in ``kv``."""
        heads, both = self._heads, self._heads + self._kv_heads
        qkv = self.qkv(x).view(len(x), -1, self._head_dim)
        v = qkv[:, both:]
        if self.q_norm is not None and self.k_norm is not None:
            q = self._rotary(self.q_norm(qkv[:, :heads]), *cos_sin)
            k = self._rotary(self.k_norm(qkv[:, heads:both]), *cos_sin)
        else:
            rotated = self._rotary(qkv[:, :both], *cos_sin)
            q, k = rotated[:, :heads], rotated[:, heads:]
        out = self._backend.forward(q, k, v, kv, metadata, scale=self._head_dim**-0.5, window=self._window)
        return self.out(out.view(len(x), -1))

    def sources(self, name: str) -> list[Source]:
        """``name`` of the block in the checkpoint."""
        found = self.qkv.sources([f"{name}.{p}_proj" for p in "qkv"])
        found += self.out.sources([f"{name}.o_proj"])
        if self.q_norm is not None and self.k_norm is not None:
            found += self.q_norm.sources(f"{name}.q_norm") + self.k_norm.sources(f"{name}.k_norm")
        return found
