"""Experts over packed weights, tokens brought together by expert; one call (csrc/moe.h).

A token's result depends on itself only: its experts are added in ascending order, whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xllm.engine.kernels.linear.native import PackedWeight, pack_rows, packed_shape
from xllm.engine.kernels.moe import reference
from xllm.engine.platform.native import TYPES, MoeArgs, required_library


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Weights ``[E, O, I]``, those of each expert in the order in which they are read."""

    data: torch.Tensor
    """``[E, ceil(O / 64), I, 64]``, see PackedWeight."""
    num_out: int
    num_in: int


def pack_experts(weight: torch.Tensor) -> torch.Tensor | PackedExperts:
    """``weight [E, O, I]`` packed (a router ``[O, I]`` is one expert); what the kernels do not know stays as it is."""
    stack = weight.detach().reshape(-1, *weight.shape[-2:])
    num_experts, num_out, num_in = stack.shape
    shape = packed_shape(num_out, num_in, weight.dtype)
    if shape is None:
        return weight
    packed = PackedExperts(torch.empty((num_experts, *shape), dtype=weight.dtype), num_out, num_in)
    threads = required_library().num_threads(stack[0].numel())
    for rows, data in zip(stack, packed.data, strict=True):
        pack_rows(PackedWeight(data, num_out, num_in), 0, rows, num_threads=threads)
    return packed


def moe_args(
    router: PackedExperts, gate_up: PackedExperts, down: PackedExperts, top_k: int, norm_topk_prob: bool
) -> MoeArgs:
    """What the library wants; the weights must stay alive."""
    return MoeArgs(
        router=router.data.data_ptr(),
        gate_up=gate_up.data.data_ptr(),
        down=down.data.data_ptr(),
        hidden=router.num_in,
        inner=down.num_in,
        experts=router.num_out,
        top_k=top_k,
        is_normed=norm_topk_prob,
    )


def moe(
    x: torch.Tensor,
    router: torch.Tensor | PackedExperts,
    gate_up: torch.Tensor | PackedExperts,
    down: torch.Tensor | PackedExperts,
    top_k: int,
    norm_topk_prob: bool,
) -> torch.Tensor:
    """See the reference. Weights that were not packed take the reference's way, all three of them."""
    if not isinstance(router, PackedExperts):
        assert isinstance(gate_up, torch.Tensor) and isinstance(down, torch.Tensor), "all packed or none"
        return reference.moe(x, router, gate_up, down, top_k, norm_topk_prob)
    assert isinstance(gate_up, PackedExperts) and isinstance(down, PackedExperts), "all packed or none"
    library = required_library()
    x = x.contiguous()
    out = torch.empty_like(x)
    args = moe_args(router, gate_up, down, top_k, norm_topk_prob)
    threads = library.num_threads(gate_up.data.numel())
    library.lib.xllm_moe(TYPES[x.dtype], args, x.data_ptr(), len(x), out.data_ptr(), threads)
    return out
