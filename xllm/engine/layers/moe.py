"""Mixture-of-experts MLP."""

from __future__ import annotations

import torch
from torch import nn

from xllm.config.model_spec import MoeSpec
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source


class MoeMLP(nn.Module):
    """A softmax router over gated MLPs; the experts' weights are stacked."""

    def __init__(self, build: BuildContext, spec: MoeSpec, hidden_size: int) -> None:
        super().__init__()
        self._moe = build.kernels.moe
        self._spec = spec
        experts, inner = spec.num_experts, spec.intermediate_size
        self.router = build.empty_parameter((experts, hidden_size))
        self.gate_up = build.empty_parameter((experts, 2 * inner, hidden_size))
        self.down = build.empty_parameter((experts, hidden_size, inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, D]`` -> ``[T, D]``."""
        spec = self._spec
        return self._moe(x, self.router, self.gate_up, self.down, spec.top_k, spec.norm_topk_prob)

    def sources(self, name: str) -> list[Source]:
        """``name`` of the block in the checkpoint; one tensor per expert and projection."""
        inner = self._spec.intermediate_size
        found = [Source(self.router, f"{name}.gate.weight")]
        for i in range(self._spec.num_experts):
            prefix = f"{name}.experts.{i}"
            found.append(Source(self.gate_up, f"{prefix}.gate_proj.weight", 0, inner, i))
            found.append(Source(self.gate_up, f"{prefix}.up_proj.weight", inner, inner, i))
            found.append(Source(self.down, f"{prefix}.down_proj.weight", index=i))
        return found
