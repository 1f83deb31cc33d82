"""Qwen3-MoE: Qwen3's attention; sparse layers with a softmax router, the others dense."""

from __future__ import annotations

from xllm.config.model_spec import ModelSpec
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.moe import MoeMLP
from xllm.engine.models.decoder import CausalLM, Mlp
from xllm.engine.models.dense import build_gated_mlp


def build_qwen3_moe(
    spec: ModelSpec, build: BuildContext, layer_range: tuple[int, int] | None = None
) -> CausalLM:
    """A decoder with mixture-of-experts layers; weights are uninitialised."""
    return CausalLM(build, spec, _build_mlp, layer_range)


def _build_mlp(build: BuildContext, spec: ModelSpec, layer: int) -> Mlp:
    if spec.is_sparse(layer):
        assert spec.moe is not None
        return MoeMLP(build, spec.moe, spec.hidden_size)
    return build_gated_mlp(build, spec, layer)
