"""Mixture-of-experts MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xllm.config.model_spec import MoeSpec
from xllm.engine.kernels.linear.native import PackedWeight, packed_shape
from xllm.engine.kernels.moe import native
from xllm.engine.kernels.moe.native import PackedExperts
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source


class MoeMLP(nn.Module):
    """A softmax router over gated MLPs; the experts' weights are stacked."""

    def __init__(self, build: BuildContext, spec: MoeSpec, hidden_size: int) -> None:
        super().__init__()
        self._moe = build.kernels.moe
        self._pack_experts = build.kernels.pack_experts
        self.spec = spec
        experts, inner = spec.num_experts, spec.intermediate_size
        self.router = build.empty_parameter((experts, hidden_size))
        self.gate_up = build.empty_parameter((experts, 2 * inner, hidden_size))
        self.down = build.empty_parameter((experts, hidden_size, inner))
        self.packed: tuple[Any, Any, Any] | None = None
        """Router, gate-up and down as the kernel wants them; None before :meth:`pack`."""
        self._adopted: dict[str, PackedExperts] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` -> ``[T, D]``."""
        weights = self.packed or (self.router, self.gate_up, self.down)
        return self._moe(x, *weights, self.spec.top_k, self.spec.norm_topk_prob)

    def packed_shapes(self) -> dict[str, tuple[int, ...]]:
        """See :class:`~xllm.engine.layers.sources.Packable`; all three or none."""
        found: dict[str, tuple[int, ...]] = {}
        if self._moe is not native.moe:
            return found
        for name in ("router", "gate_up", "down"):
            weight = getattr(self, name)
            num_out, num_in = weight.shape[-2:]
            shape = packed_shape(num_out, num_in, weight.dtype)
            if shape is None:
                return {}
            found[name] = (weight[..., 0, 0].numel(), *shape)
        return found

    def adopt(self, name: str, data: torch.Tensor) -> list[PackedWeight]:
        """See :class:`~xllm.engine.layers.sources.Packable`."""
        num_out, num_in = getattr(self, name).shape[-2:]
        self._adopted[name] = PackedExperts(data, num_out, num_in)
        setattr(self, name, nn.Parameter(data, requires_grad=False))
        if len(self._adopted) == 3:
            self.packed = (self._adopted["router"], self._adopted["gate_up"], self._adopted["down"])
        return [PackedWeight(expert, num_out, num_in) for expert in data]

    def pack(self) -> None:
        """Bring the loaded weights into the kernel's order, one after another; the loaded copies are dropped."""
        if self.packed is not None or any(width % 2 for width in self.down.shape[1:]):
            return
        packed = []
        for name in ("router", "gate_up", "down"):
            found = self._pack_experts(getattr(self, name).data)
            if isinstance(found, PackedExperts):
                setattr(self, name, nn.Parameter(found.data, requires_grad=False))
            packed.append(found)
        self.packed = (packed[0], packed[1], packed[2])

    def sources(self, name: str) -> list[Source]:
        """``name`` of the block in the checkpoint; one tensor per expert and projection."""
        inner = self.spec.intermediate_size
        found = [Source(self.router, f"{name}.gate.weight")]
        for i in range(self.spec.num_experts):
            prefix = f"{name}.experts.{i}"
            found.append(Source(self.gate_up, f"{prefix}.gate_proj.weight", 0, inner, i))
            found.append(Source(self.gate_up, f"{prefix}.up_proj.weight", inner, inner, i))
            found.append(Source(self.down, f"{prefix}.down_proj.weight", index=i))
        return found
