"""Roofline priors: what a model on a machine should cost, from its shape and data sheets; learning starts here."""

from __future__ import annotations

from xllm.config.model_spec import ModelSpec
from xllm.perf.step_time import StepTimeProfile

GPUS = (
    ("H200", 990e12, 4.8e12),
    ("H100", 990e12, 3.35e12),
    ("H20", 148e12, 4.0e12),
    ("B200", 2250e12, 8.0e12),
    ("A100", 312e12, 2.0e12),
    ("L40", 181e12, 0.86e12),
    ("L4", 121e12, 0.3e12),
    ("4090", 165e12, 1.0e12),
)
"""Part of the product name, dense bf16 FLOP/s, bytes/s, from data sheets; float32 counts an eighth."""
UNKNOWN_GPU = (100e12, 1.0e12)
CPU_CORE = (60e9, 12e9)
"""FLOP/s in float32 and bytes/s of one core of a server."""


def build_prior(
    spec: ModelSpec, *, device_name: str, is_gpu: bool, dtype: str, num_threads: int
) -> StepTimeProfile:
    """The prior of a model on this device; every number is a guess that observations correct."""
    if is_gpu:
        known = (row[1:] for row in GPUS if row[0] in device_name)
        peak, bandwidth = next(known, UNKNOWN_GPU)
        peak = peak / 8 if dtype == "float32" else peak
        overhead_s, row_s = 1e-3, 2e-6
    else:
        peak, bandwidth = CPU_CORE[0] * num_threads, CPU_CORE[1] * num_threads
        overhead_s, row_s = 1e-3, 2e-5
    size = spec.weight_bytes(dtype) / spec.num_params
    moe = spec.moe
    expert_params = 0 if moe is None else 3 * spec.hidden_size * moe.intermediate_size * len(moe.layers)
    num_experts = 0 if moe is None else moe.num_experts
    return StepTimeProfile(
        name=f"prior:{device_name or 'cpu'}",
        num_params=spec.num_active_params,
        weight_bytes=spec.weight_bytes(dtype) - expert_params * num_experts * size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        head_dim=spec.head_dim,
        kv_bytes_per_token=spec.kv_bytes_per_token(dtype),
        peak_flops=peak,
        bandwidth_bytes_s=bandwidth,
        overhead_s=overhead_s,
        row_s=row_s,
        expert_bytes=expert_params * size,
        num_experts=num_experts,
        experts_per_token=0 if moe is None else moe.top_k,
    )
