"""The decoder skeleton that all families share: embedding, layers, final norm, head.

A family says which attention and which MLP a layer has; everything else is a fact of the ModelSpec. The
module holds a range of layers: a rank of a pipeline holds some, today's only rank all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from xllm.config.model_spec import ModelSpec
from xllm.engine.layers.attention import SelfAttention
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.embedding import Embedding
from xllm.engine.layers.linear import Linear
from xllm.engine.layers.moe import MoeMLP
from xllm.engine.layers.norm import RMSNorm
from xllm.engine.layers.rotary import Rotary
from xllm.engine.layers.sources import Source
from xllm.engine.memory import KVMemory
from xllm.engine.models.hooks import LayerHooks, NullHooks
from xllm.engine.models.model_input import ModelInput


class Mlp(Protocol):
    """The second half of a layer: ``[T, D] -> [T, D]``."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply."""

    def sources(self, name: str) -> list[Source]:
        """``name`` of the block in the checkpoint."""


MlpBuilder = Callable[[BuildContext, ModelSpec, int], Mlp]


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP around a residual stream."""

    def __init__(self, build: BuildContext, spec: ModelSpec, layer: int, build_mlp: MlpBuilder) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(build, spec.hidden_size, spec.rms_norm_eps)
        self.attention = SelfAttention(build, spec, layer)
        self.mlp_norm = RMSNorm(build, spec.hidden_size, spec.rms_norm_eps)
        self.mlp = build_mlp(build, spec, layer)

    def forward(
        self,
        x: torch.Tensor,
        cos_sin: tuple[torch.Tensor, torch.Tensor],
        kv: KVMemory,
        layer: int,
        inp: ModelInput,
    ) -> torch.Tensor:
        """``[T, D] -> [T, D]``."""
        x = x + self.attention(self.attention_norm(x), cos_sin, kv.layer(layer), inp.attention)
        return x + self.mlp(self.mlp_norm(x))

    def sources(self, name: str) -> list[Source]:
        """``name`` of the layer in the checkpoint."""
        return [
            *self.attention_norm.sources(f"{name}.input_layernorm"),
            *self.attention.sources(f"{name}.self_attn"),
            *self.mlp_norm.sources(f"{name}.post_attention_layernorm"),
            *self.mlp.sources(f"{name}.mlp"),
        ]


class CausalLM(nn.Module):
    """A decoder over a range of layers; the first rank embeds, the last has the final norm and the head."""

    def __init__(
        self,
        build: BuildContext,
        spec: ModelSpec,
        build_mlp: MlpBuilder,
        layer_range: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        first, last = layer_range or (0, spec.num_layers)
        assert 0 <= first < last <= spec.num_layers, f"layer range {layer_range} of {spec.num_layers}"
        self.spec = spec
        self._first, self._last = first, last
        has_head = last == spec.num_layers
        needs_table = first == 0 or (has_head and spec.tie_word_embeddings)
        self.embedding = Embedding(build, spec.vocab_size, spec.hidden_size) if needs_table else None
        self.rotary = Rotary(spec.rope, spec.head_dim, build.device)
        self.layers = nn.ModuleList(DecoderLayer(build, spec, i, build_mlp) for i in range(first, last))
        self.norm: RMSNorm | None = None
        self.head: Embedding | None = None
        if has_head:
            self.norm = RMSNorm(build, spec.hidden_size, spec.rms_norm_eps)
            tied = spec.tie_word_embeddings
            self.head = self.embedding if tied else Embedding(build, spec.vocab_size, spec.hidden_size)

    @torch.inference_mode()
    def forward(self, inp: ModelInput, kv: KVMemory, hooks: LayerHooks | None = None) -> torch.Tensor:
        """Run the layers; stores the new KV in ``kv``.

        Returns:
            ``[T, D]``; after the final norm if this rank holds the last layer.

        Raises:
            StepInterrupted: by the hooks.
        """
        assert not inp.hidden_taps and inp.media_gather is None and inp.adapter_per_row is None, "not built"
        hooks = hooks or NullHooks()
        if inp.hidden is not None:
            x = inp.hidden
        else:
            assert self.embedding is not None, "a rank without embedding needs hidden states"
            x = self.embedding(inp.token_ids)
        cos_sin = self.rotary(inp.positions)
        for i, layer in enumerate(self.layers, self._first):
            hooks.layer_ready(i)
            x = layer(x, cos_sin, kv, i, inp)
            hooks.layer_done(i)
        return x if self.norm is None else self.norm(x)

    @torch.inference_mode()
    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[S, D]`` rows of the output of the last rank's forward -> float32 ``[S, V]``."""
        assert self.head is not None, "only the last rank has the head"
        return self.head.project(hidden)

    def pack(self) -> None:
        """Bring the loaded matrices into their kernels' order, one after another; the loaded copies are dropped."""
        for module in self.modules():
            if isinstance(module, Linear | MoeMLP):
                module.pack()
        if self.head is not None:
            self.head.pack()

    def sources(self) -> list[Source]:
        """What the checkpoint must hold for this rank."""
        found: list[Source] = []
        if self.embedding is not None:
            found += self.embedding.sources("model.embed_tokens")
        for i, layer in enumerate(self.layers, self._first):
            assert isinstance(layer, DecoderLayer)
            found += layer.sources(f"model.layers.{i}")
        if self.norm is not None:
            found += self.norm.sources("model.norm")
        if self.head is not None and self.head is not self.embedding:
            found += self.head.sources("lm_head")
        return found
