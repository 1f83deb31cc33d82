"""A step-time model whose answers can be worked out in the head: 1 ms per new token, nothing else costs."""

from __future__ import annotations

from xllm.perf.learned import LearnedStepTime
from xllm.perf.step_time import StepTimeProfile

TOKEN_S = 1e-3
ONE_MS_PER_TOKEN = StepTimeProfile(
    name="1 ms per token", num_params=1, weight_bytes=0, num_layers=0, num_heads=0, head_dim=0, kv_bytes_per_token=0,
    peak_flops=2000, bandwidth_bytes_s=1, efficiency=1.0,
)  # fmt: skip


def known_speed() -> LearnedStepTime:
    """A fresh model; it starts at the truth."""
    return LearnedStepTime(ONE_MS_PER_TOKEN)
