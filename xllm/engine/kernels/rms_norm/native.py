"""RMS norm in one pass over each row (csrc/parts.h)."""

from __future__ import annotations

import torch

from xllm.engine.kernels.rms_norm import reference
from xllm.engine.platform.native import TYPES, required_library


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See the reference. Heads of a wider tensor (``[T, H, K]``, dense in H and K) are read where they lie."""
    dim = x.shape[-1]
    if x.dtype not in TYPES or weight.dtype != x.dtype:
        return reference.rms_norm(x, weight, eps)
    inner, stride = 1, dim
    if x.ndim == 3 and x.stride(2) == 1 and x.stride(1) == dim:
        inner, stride = x.shape[1], x.stride(0)
    else:
        x = x.contiguous()
    library = required_library()
    out = torch.empty(x.shape, dtype=x.dtype)
    library.lib.xllm_rms_norm(
        TYPES[x.dtype],
        x.data_ptr(),
        x.numel() // dim,
        inner,
        stride,
        weight.data_ptr(),
        dim,
        eps,
        out.data_ptr(),
        library.num_threads(x.numel()),
    )
    return out
