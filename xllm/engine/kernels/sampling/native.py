"""``sample_gumbel`` of the CPU library: one pass per row and nothing sorted (csrc/sampling.h)."""

from __future__ import annotations

import torch

from xllm.engine.platform.native import required_library


def pick_largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See the reference."""
    library = required_library()
    assert logits.dtype == torch.float32 and logits.ndim == 2, "float32 [N, V]"
    logits = logits.contiguous()
    best = torch.empty(len(logits), dtype=torch.float32)
    ids = torch.empty(len(logits), dtype=torch.int64)
    threads = min(library.num_threads(logits.numel()), len(logits))
    library.lib.xllm_largest(
        logits.data_ptr(), *logits.shape, best.data_ptr(), ids.data_ptr(), max(threads, 1)
    )
    return best, ids


def sample_gumbel(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    choices: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """See the reference. The noise has the same bits up to its logarithms, which may differ in the last one."""
    library = required_library()
    assert logits.dtype == torch.float32 and logits.ndim == 2, "float32 [N, V]"
    logits = logits.contiguous()
    floats = [x.to(torch.float32).contiguous() for x in (temperature, top_p, min_p)]
    integers = [x.to(torch.int64).contiguous() for x in (top_k, seeds, choices, positions)]
    out = torch.empty(len(logits), dtype=torch.int64)
    pointers = [x.data_ptr() for x in (floats[0], integers[0], floats[1], floats[2], *integers[1:], out)]
    library.lib.xllm_sample(logits.data_ptr(), *logits.shape, *pointers, library.num_threads(logits.numel()))
    return out
