"""Reference mixture of experts: one pass over the experts that some token chose."""

from __future__ import annotations

import torch
from torch.nn import functional

from xllm.engine.kernels.silu_mul.reference import silu_mul


def moe(
    x: torch.Tensor,
    router: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    norm_topk_prob: bool,
) -> torch.Tensor:
    """Sum over the ``top_k`` experts of each token of router weight x expert MLP.

    Shapes: ``x [T, D]``, ``router [E, D]``, ``gate_up [E, 2 I, D]``, ``down [E, D, I]`` -> ``[T, D]``.
    Router probabilities are float32. Per token the experts are added in ascending order, whatever else is
    in the batch.
    """
    # A rounded router logit may send a token to another expert: the one product worth float32.
    weights, experts = route(functional.linear(x.float(), router.float()), top_k, norm_topk_prob)
    num_experts = router.shape[0]
    order = torch.argsort(experts.flatten(), stable=True)
    tokens = torch.div(order, top_k, rounding_mode="floor")
    counts = torch.bincount(experts.flatten(), minlength=num_experts).tolist()
    flat_weights = weights.flatten()[order].unsqueeze(-1)
    out = torch.zeros_like(x, dtype=torch.float32)
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        picked = tokens[start : start + count]
        hidden = silu_mul(functional.linear(x.index_select(0, picked), gate_up[expert]))
        result = functional.linear(hidden, down[expert]) * flat_weights[start : start + count]
        out.index_add_(0, picked, result)
        start += count
    return out.to(x.dtype)


def pack_experts(weight: torch.Tensor) -> torch.Tensor:
    """The reference takes weights as they are."""
    return weight


def route(logits: torch.Tensor, top_k: int, norm_topk_prob: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Router logits ``[T, E]`` -> float32 weights and expert ids, ``[T, top_k]`` each."""
    weights, experts = torch.topk(torch.softmax(logits, dim=-1, dtype=torch.float32), top_k, dim=-1)
    if norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts
