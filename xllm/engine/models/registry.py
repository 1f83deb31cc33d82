"""Architecture -> builder."""

from __future__ import annotations

from xllm.base.registry import Registry
from xllm.config.model_spec import ModelSpec
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.models.decoder import CausalLM

MODEL_TABLE: Registry[CausalLM] = Registry(
    "model",
    {
        "LlamaForCausalLM": "xllm.engine.models.dense:build_dense",
        "MistralForCausalLM": "xllm.engine.models.dense:build_dense",
        "Qwen2ForCausalLM": "xllm.engine.models.dense:build_dense",
        "Qwen3ForCausalLM": "xllm.engine.models.dense:build_dense",
        "Qwen3MoeForCausalLM": "xllm.engine.models.qwen3_moe:build_qwen3_moe",
    },
)


def build_model(spec: ModelSpec, build: BuildContext, layer_range: tuple[int, int] | None = None) -> CausalLM:
    """The model of the spec's architecture, its weights uninitialised.

    Raises:
        ConfigError: no builder has that name.
    """
    return MODEL_TABLE.load(spec.architecture)(spec, build, layer_range)
