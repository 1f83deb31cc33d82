"""Random weights made from a seed: for measuring without a checkpoint."""

from __future__ import annotations

import math

import torch

from xllm.engine.models import CausalLM


@torch.inference_mode()
def fill_with_dummy_weights(model: CausalLM, seed: int) -> None:
    """Fill every parameter: norms near one, biases small, matrices scaled so that activations keep their size.

    The same seed gives the same weights for the same shapes, dtype and device.
    """
    first = next(model.parameters())
    generator = torch.Generator(device=first.device).manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim == 1:
            is_norm = "norm" in name
            parameter.uniform_(0.9 if is_norm else -0.1, 1.1 if is_norm else 0.1, generator=generator)
        else:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter.shape[-1]), generator=generator)
