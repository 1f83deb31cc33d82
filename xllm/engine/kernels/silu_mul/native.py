"""The gated activation in one pass (csrc/parts.h)."""

from __future__ import annotations

import torch

from xllm.engine.kernels.silu_mul import reference
from xllm.engine.platform.native import TYPES, required_library


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See the reference."""
    if gate_up.dtype not in TYPES or gate_up.ndim != 2:
        return reference.silu_mul(gate_up)
    library = required_library()
    gate_up = gate_up.contiguous()
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, width), dtype=gate_up.dtype)
    library.lib.xllm_silu_mul(
        TYPES[out.dtype],
        gate_up.data_ptr(),
        num_tokens,
        width,
        out.data_ptr(),
        library.num_threads(out.numel()),
    )
    return out
