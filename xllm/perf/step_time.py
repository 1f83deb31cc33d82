"""Time of one step by a roofline (report section 2.2, our completion), in seconds, FLOPs and bytes throughout.

    linear     F = 2 * params * tokens                      B = weight bytes
    attention  F = flops per pair * sum q*c                 B = KV bytes per token * sum c
    time       overhead + sum over both of max(F / (efficiency * peak), B / (efficiency * bandwidth))

q = new tokens of a row, c = its context after the step. Attention costs 4 * layers * heads * head_dim FLOPs per pair
of query and key; with a latent cache (MLA, absorbed form) 2 * layers * heads * (2 * latent + rope), since scores run
over latent + rope dimensions and values over the latent ones. A mixture of experts (MoE) reads only the experts its
tokens chose: of E experts, k per token, n tokens are expected to touch E * (1 - (1 - k/E)^n).

The built-in profiles are priors from data sheets and model
shapes, not measurements; a fitted profile comes from a JSON file with the same fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from xllm.errors import ConfigError, boundary


@dataclass(frozen=True, slots=True)
class StepShape:
    """What of a step its time depends on."""

    num_tokens: int
    """Sum of q."""
    context_tokens: int
    """Sum of c: KV entries read."""
    query_context: int
    """Sum of q * mean context of its queries: attention's multiplications."""
    decode_context: int = 0
    """The part of ``context_tokens`` (and ``query_context``) of rows with one new token."""
    num_rows: int = 0
    """Rows of the step."""


def shape_of(rows: Iterable[tuple[int, int]]) -> StepShape:
    """Shape of rows given as (start, new tokens)."""
    tokens = context = pairs = decode = num_rows = 0
    for start, count in rows:
        num_rows += 1
        tokens += count
        if count == 1:
            decode += start + 1
        else:
            context += start + count
            pairs += count * (2 * start + count + 1) // 2  # sum over the row's queries of their context
    return StepShape(tokens, context + decode, pairs + decode, decode, num_rows)


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Predicted time of a step and how well it would use the machine (shares of the peaks, 0..1)."""

    time_s: float
    linear_s: float
    attention_s: float
    util_compute: float
    util_memory: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimeProfile:
    """A machine with a model on it."""

    name: str
    num_params: float
    """Active per token."""
    weight_bytes: float
    num_layers: int
    num_heads: int
    head_dim: int
    kv_bytes_per_token: float
    peak_flops: float
    bandwidth_bytes_s: float
    efficiency: float = 0.7
    """Reachable share of both peaks."""
    overhead_s: float = 0.0
    """Of every step, whatever its size."""
    row_s: float = 0.0
    """Of every row: its logits, its sample, its bookkeeping."""
    expert_bytes: float = 0.0
    """MoE: bytes of one routed expert over all sparse layers; ``weight_bytes`` is then the rest."""
    num_experts: int = 0
    experts_per_token: int = 0
    latent_dim: int = 0
    """MLA: dimensions of the latent cache; 0: keys and values per head."""
    rope_dim: int = 0
    """MLA: rotary dimensions beside the latent ones."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if item.name != "name" and not (is_number and value >= 0):
                raise ConfigError(
                    f"timed profile {self.name!r}: {item.name} is {value!r}", hint="a number >= 0"
                )
        for name in ("peak_flops", "bandwidth_bytes_s", "efficiency"):
            if getattr(self, name) == 0:
                raise ConfigError(f"timed profile {self.name!r}: {name} is 0", hint="a number above 0")

    @property
    def pair_flops(self) -> float:
        """Attention FLOPs of one query with one key, over all layers."""
        if self.latent_dim:
            return 2.0 * self.num_layers * self.num_heads * (2 * self.latent_dim + self.rope_dim)
        return 4.0 * self.num_layers * self.num_heads * self.head_dim

    def weight_bytes_read(self, num_tokens: int) -> float:
        """Bytes of weights a step over ``num_tokens`` tokens reads."""
        if not self.num_experts:
            return self.weight_bytes
        idle = (1.0 - self.experts_per_token / self.num_experts) ** num_tokens
        return self.weight_bytes + self.expert_bytes * self.num_experts * (1.0 - idle)

    def estimate(self, shape: StepShape) -> StepEstimate:
        """Predicted time of a step."""
        flops_s, bytes_s = self.peak_flops * self.efficiency, self.bandwidth_bytes_s * self.efficiency
        linear_flops = 2.0 * self.num_params * shape.num_tokens
        attention_flops = self.pair_flops * shape.query_context
        kv_bytes = self.kv_bytes_per_token * shape.context_tokens
        weight_bytes = self.weight_bytes_read(shape.num_tokens)
        linear_s = max(linear_flops / flops_s, weight_bytes / bytes_s)
        attention_s = max(attention_flops / flops_s, kv_bytes / bytes_s)
        time_s = self.overhead_s + self.row_s * shape.num_rows + linear_s + attention_s
        if time_s <= 0:
            return StepEstimate(0.0, 0.0, 0.0, 0.0, 0.0)
        return StepEstimate(
            time_s,
            linear_s,
            attention_s,
            (linear_flops + attention_flops) / (time_s * self.peak_flops),
            (weight_bytes + kv_bytes) / (time_s * self.bandwidth_bytes_s),
        )


_PRIORS = (
    # A step takes no time: what is left is the framework.
    StepTimeProfile(
        name="instant", num_params=0, weight_bytes=0, num_layers=0, num_heads=0, head_dim=0, kv_bytes_per_token=0,
        peak_flops=1e15, bandwidth_bytes_s=1e12,
    ),
    # A Qwen3-0.6B shape in bf16 on two CPU cores (1 TFLOP/s, 48 GB/s).
    StepTimeProfile(
        name="cpu-0.6b", num_params=0.6e9, weight_bytes=1.2e9, num_layers=28, num_heads=16, head_dim=128,
        kv_bytes_per_token=114_688, peak_flops=1.0e12, bandwidth_bytes_s=48e9, overhead_s=0.5e-3,
    ),
    # A Qwen3-8B shape in bf16 on one H200 (data sheet: 990 TFLOP/s, 4.8 TB/s).
    StepTimeProfile(
        name="h200-8b", num_params=8.2e9, weight_bytes=16.4e9, num_layers=36, num_heads=32, head_dim=128,
        kv_bytes_per_token=147_456, peak_flops=990e12, bandwidth_bytes_s=4.8e12, overhead_s=0.3e-3,
    ),
)  # fmt: skip
PROFILES = {p.name: p for p in _PRIORS}


def load_profile(name_or_path: str) -> StepTimeProfile:
    """A built-in profile, or one from a JSON file; ConfigError when there is neither."""
    if name_or_path in PROFILES:
        return PROFILES[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"timed profile {name_or_path!r} is neither built in nor a file",
            hint=f"one of {', '.join(sorted(PROFILES))}, or a JSON file with the same fields",
        )
    with boundary(
        ConfigError, f"timed profile {path}", hint="see asdict of a built-in profile for the fields"
    ):
        return StepTimeProfile(**json.loads(path.read_text()))


def profile_json(profile: StepTimeProfile) -> str:
    """A profile as JSON that :func:`load_profile` reads."""
    return json.dumps(asdict(profile), indent=2)
