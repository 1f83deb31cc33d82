"""Rotary frequencies.

Published forms: linear position interpolation (Chen et al. 2023, arXiv 2306.15595), Llama 3.1's piecewise
scaling (Meta's reference code), YaRN (Peng et al. 2023, arXiv 2309.00071, sections 3.2-3.4). ``dynamic`` is
the identity inside the trained context, to which such models are limited here.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from xllm.config.model_spec import RopeSpec


class Rotary(nn.Module):
    """Computes cos and sin of a step's positions; all layers share them."""

    def __init__(self, spec: RopeSpec, head_dim: int, device: torch.device) -> None:
        super().__init__()
        frequencies, self._scale = rotary_frequencies(spec, head_dim)
        self._frequencies = frequencies.to(device)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 ``[T]`` -> cos and sin, float32 ``[T, 1, K]``, as the rotary kernel wants them."""
        assert positions.ndim == 1, "positions of several axes are not built"
        angles = positions.to(torch.float32)[:, None, None] * self._frequencies
        cos, sin = angles.cos() * self._scale, angles.sin() * self._scale
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotary_frequencies(spec: RopeSpec, head_dim: int) -> tuple[torch.Tensor, float]:
    """Radians per position, float32 ``[head_dim / 2]``, and the factor of cos and sin."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    plain = 1.0 / (spec.theta**exponents)
    if spec.kind in ("default", "dynamic"):
        return plain, 1.0
    if spec.kind == "linear":
        return plain / spec.factor, 1.0
    if spec.kind == "llama3":
        return _llama3(plain, spec), 1.0
    assert spec.kind == "yarn", spec.kind
    return _yarn(spec, head_dim, exponents), _yarn_scale(spec)


def _llama3(plain: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    """Long waves are stretched by the factor, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    context = spec.original_max_position
    blend = (context / wavelength - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blended = (1 - blend) * plain / spec.factor + blend * plain
    stretched = torch.where(wavelength > context / spec.low_freq_factor, plain / spec.factor, blended)
    return torch.where(wavelength < context / spec.high_freq_factor, plain, stretched)


def _yarn(spec: RopeSpec, head_dim: int, exponents: torch.Tensor) -> torch.Tensor:
    """Dimensions that turn often are kept, those that turn rarely are interpolated, a ramp lies between."""

    def dimension_of(turns: float) -> float:
        return (
            head_dim
            * math.log(spec.original_max_position / (turns * 2 * math.pi))
            / (2 * math.log(spec.theta))
        )

    low, high = dimension_of(spec.beta_fast), dimension_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    waves = spec.theta**exponents
    kept = 1 - ramp
    return 1.0 / (spec.factor * waves) * (1 - kept) + 1.0 / waves * kept


def _yarn_scale(spec: RopeSpec) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if spec.factor <= 1 else 0.1 * weight * math.log(spec.factor) + 1.0

    if spec.attention_factor is not None:
        return spec.attention_factor
    if spec.mscale and spec.mscale_all_dim:
        return magnitude(spec.mscale) / magnitude(spec.mscale_all_dim)
    return magnitude(1.0)
