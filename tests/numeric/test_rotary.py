"""Rotary frequencies of published configurations against transformers, at their real sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from xllm.config.model_spec import RopeSpec
from xllm.engine.layers.rotary import Rotary, rotary_frequencies

PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.1": dict(
        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "llama-3.2-1b": dict(
        rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
    "qwen3-yarn": dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768),
    "yarn-clamped": dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=32768),
    "linear": dict(rope_type="linear", rope_theta=1e4, factor=8.0),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
@pytest.mark.parametrize("head_dim", [64, 128])
def test_frequencies(name: str, head_dim: int) -> None:
    parameters = PUBLISHED[name]
    config = transformers.LlamaConfig(
        head_dim=head_dim, max_position_embeddings=40960, rope_parameters=dict(parameters)
    )
    expected, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    known = {k: v for k, v in parameters.items() if k not in ("rope_type", "rope_theta")}
    known["original_max_position"] = known.pop("original_max_position_embeddings", 0)
    spec = RopeSpec(kind=parameters["rope_type"], theta=parameters["rope_theta"], **known)
    ours, our_scale = rotary_frequencies(spec, head_dim)
    assert our_scale == pytest.approx(scale, rel=1e-12)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_far_positions() -> None:
    """A position beyond the range of exact float32 angles still gives what transformers computes."""
    rotary = Rotary(RopeSpec(theta=1e6), 64, torch.device("cpu"))
    positions = torch.tensor([0, 1, 1000, 131071])
    cos, sin = rotary(positions)
    angles = positions[:, None].float() * rotary_frequencies(RopeSpec(theta=1e6), 64)[0]
    assert cos.shape == sin.shape == (4, 1, 64)
    assert torch.equal(cos[:, 0], angles.cos().repeat(1, 2))
    assert torch.equal(sin[:, 0], torch.cat((-angles.sin(), angles.sin()), dim=-1))
