"""NativeBook: a forward as one call of the CPU library per layer, the CPU's counterpart of a captured graph."""

from __future__ import annotations

import torch

from xllm.engine.attention import NativeAttention, StepPlanner
from xllm.engine.memory import KVMemory
from xllm.engine.models import CausalLM, LayerHooks
from xllm.engine.models.native_layers import NativeLayers
from xllm.engine.runner.graph_book import EagerBook, Launch
from xllm.engine.runner.step_plan import StepPlan


class NativeBook:
    """Any step, whatever its size: nothing is recorded and nothing is padded."""

    def __init__(
        self,
        model: CausalLM,
        kv: KVMemory,
        planner: StepPlanner,
        device: torch.device,
        attention: NativeAttention,
        *,
        num_wide_threads: int = 1,
    ) -> None:
        self._eager = EagerBook(model, kv, planner, device)
        self._layers = NativeLayers(model, attention, num_wide_threads=num_wide_threads)
        self._kv = kv
        self.num_launches = 0
        """Steps run so far."""

    def prepare(self, plan: StepPlan) -> Launch:
        """Nothing to choose."""
        return self._eager.prepare(plan)

    def forward(self, launch: Launch, hooks: LayerHooks) -> torch.Tensor:
        """Run the layers."""
        self.num_launches += 1
        return self._layers.forward(launch.inp, self._kv, hooks)
