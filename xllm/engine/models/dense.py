"""Llama, Mistral, Qwen2 and Qwen3: one skeleton.

They differ in facts of the ModelSpec only: biases of the projections (Qwen2: q, k and v; Llama and Qwen3: by
configuration), norm of queries and keys per head (Qwen3), attention windows (Mistral; Qwen by configuration),
rotary scaling, tied embeddings.
"""

from __future__ import annotations

from xllm.config.model_spec import ModelSpec
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.mlp import GatedMLP
from xllm.engine.models.decoder import CausalLM


def build_dense(spec: ModelSpec, build: BuildContext, layer_range: tuple[int, int] | None = None) -> CausalLM:
    """A decoder whose layers all have a gated MLP; weights are uninitialised."""
    assert spec.moe is None, "a sparse model has another builder"
    return CausalLM(build, spec, build_gated_mlp, layer_range)


def build_gated_mlp(build: BuildContext, spec: ModelSpec, layer: int) -> GatedMLP:
    """The dense MLP of any layer."""
    return GatedMLP(build, spec.hidden_size, spec.intermediate_size, bias=spec.has_mlp_bias)
