"""Time of one step by a roofline (report section 2.2, our completion), in seconds, FLOPs and bytes throughout.

    linear     F = 2 * params * tokens                      B = weight bytes
    attention  F = 4 * layers * heads * head_dim * sum q*c  B = KV bytes per token * sum c
    time       overhead + sum over both of max(F / (efficiency * peak), B / (efficiency * bandwidth))

q = new tokens of a row, c = its context after the step. The built-in profiles are priors from data sheets and model
shapes, not measurements; a fitted profile comes from a JSON file with the same fields.
"""

from __future__ import annotations

import json
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


def shape_of(rows: Iterable[tuple[int, int]]) -> StepShape:
    """Shape of rows given as (start, new tokens)."""
    tokens = context = pairs = 0
    for start, count in rows:
        tokens += count
        context += start + count
        pairs += count * (2 * start + count + 1) // 2  # sum over the row's queries of their context
    return StepShape(tokens, context, pairs)


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

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "name" and not (isinstance(value, int | float) and value >= 0):
                raise ConfigError(
                    f"timed profile {self.name!r}: {item.name} is {value!r}", hint="a number >= 0"
                )
        for name in ("peak_flops", "bandwidth_bytes_s", "efficiency"):
            if getattr(self, name) == 0:
                raise ConfigError(f"timed profile {self.name!r}: {name} is 0", hint="a number above 0")

    def estimate(self, shape: StepShape) -> StepEstimate:
        """Predicted time of a step."""
        flops_s, bytes_s = self.peak_flops * self.efficiency, self.bandwidth_bytes_s * self.efficiency
        linear_flops = 2.0 * self.num_params * shape.num_tokens
        attention_flops = 4.0 * self.num_layers * self.num_heads * self.head_dim * shape.query_context
        kv_bytes = self.kv_bytes_per_token * shape.context_tokens
        linear_s = max(linear_flops / flops_s, self.weight_bytes / bytes_s)
        attention_s = max(attention_flops / flops_s, kv_bytes / bytes_s)
        time_s = self.overhead_s + linear_s + attention_s
        if time_s <= 0:
            return StepEstimate(0.0, 0.0, 0.0, 0.0, 0.0)
        return StepEstimate(
            time_s,
            linear_s,
            attention_s,
            (linear_flops + attention_flops) / (time_s * self.peak_flops),
            (self.weight_bytes + kv_bytes) / (time_s * self.bandwidth_bytes_s),
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
