"""A plain PyTorch Qwen3-shaped language model, small enough to train on two CPU cores.

Parameter names are those of the Hugging Face Qwen3 checkpoint layout, so `state_dict()` is the file.
The math follows the public Qwen3 configuration: RMSNorm before attention and MLP, RMSNorm over each head
of q and k, rotary positions in the half-split layout, grouped key/value heads, SwiGLU, tied embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the model; the defaults are those of the bundled demo model."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    rope_theta: float = 100_000.0
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., size] -> [..., size], same dtype."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rope_tables(shape: ModelShape, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, both [length, head_dim], float32, halves repeated."""
    half = torch.arange(0, shape.head_dim, 2, device=device, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), shape.rope_theta**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [batch, heads, length, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query attention with normed q and k heads."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x: [batch, length, hidden] -> the same shape; mask [length, length] is added to the scores."""
        batch, length, _ = x.shape
        dim, groups = self.shape.head_dim, self.shape.num_heads // self.shape.num_kv_heads
        q = self.q_norm(self.q_proj(x).view(batch, length, -1, dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, -1, dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Plain matrix products: for conversations of some dozen tokens they train faster on a CPU than
        # the fused kernel. Query heads that share a key head are stacked along the length.
        q = (q * dim**-0.5).reshape(batch, -1, groups * length, dim)
        scores = (q @ k.transpose(2, 3)).view(batch, -1, groups, length, length)
        shares = (scores + mask).softmax(dim=-1).to(v.dtype).view(batch, -1, groups * length, length)
        out = (shares @ v).view(batch, -1, length, dim)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden] -> [..., hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x: [batch, length, hidden] -> the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class SmallModel(nn.Module):
    """The whole decoder; `model.` prefixes the names as in the Hugging Face layout."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(shape.vocab_size, shape.hidden_size),
                "layers": nn.ModuleList(Layer(shape) for _ in range(shape.num_layers)),
                "norm": RMSNorm(shape.hidden_size, shape.rms_norm_eps),
            }
        )
        self._init_weights()

    def _init_weights(self) -> None:
        depth_scale = (2 * self.shape.num_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                scale = depth_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(weight, std=std * scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, length] int64 -> final hidden states [batch, length, hidden]."""
        x = self.model["embed_tokens"](tokens)
        cos, sin = rope_tables(self.shape, tokens.shape[1], tokens.device)
        if torch.is_autocast_enabled(tokens.device.type):
            dtype = torch.get_autocast_dtype(tokens.device.type)
            x, cos, sin = x.to(dtype), cos.to(dtype), sin.to(dtype)
        hidden = torch.full((tokens.shape[1],) * 2, float("-inf"), dtype=x.dtype, device=x.device)
        mask = hidden.triu(1)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin, mask)
        return self.model["norm"](x)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Summed cross entropy in float32 over the positions whose target is >= 0."""
        hidden = self(tokens).flatten(0, 1)
        keep = (targets.flatten() >= 0).nonzero().squeeze(1)
        logits = F.linear(hidden[keep], self.model["embed_tokens"].weight.to(hidden.dtype))
        return F.cross_entropy(logits.float(), targets.flatten()[keep], reduction="sum")
