"""GraphBook: how a forward is launched. Captured graphs are one way, running the model eagerly is another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from xllm.engine.attention import StepPlanner
from xllm.engine.memory import KVMemory
from xllm.engine.models import CausalLM, LayerHooks, ModelInput
from xllm.engine.runner.buckets import GraphKey
from xllm.engine.runner.model_input import build_model_input
from xllm.engine.runner.step_plan import StepPlan


@dataclass(frozen=True, slots=True)
class Launch:
    """A step ready to be run."""

    inp: ModelInput
    """Its tensors; T may be larger than the step's tokens, which come first."""
    key: GraphKey | None
    """Its graph; None: eagerly."""


class GraphBook(Protocol):
    """Launches forwards of one model over one KV memory, one after another."""

    def prepare(self, plan: StepPlan) -> Launch:
        """Choose how the step is launched and bring its inputs to the device."""
        ...

    def forward(self, launch: Launch, hooks: LayerHooks) -> torch.Tensor:
        """The hidden states ``[T, D]`` of a step; stores its KV. Valid until the next call.

        Raises:
            StepInterrupted: by the hooks.
        """
        ...


class EagerBook:
    """No graphs: every step runs the model's own code, on tensors of its own size."""

    def __init__(self, model: CausalLM, kv: KVMemory, planner: StepPlanner, device: torch.device) -> None:
        self._model = model
        self._kv = kv
        self._planner = planner
        self._device = device

    def prepare(self, plan: StepPlan) -> Launch:
        """Nothing to choose."""
        return Launch(build_model_input(plan, self._planner, self._device), None)

    def forward(self, launch: Launch, hooks: LayerHooks) -> torch.Tensor:
        """Run the model."""
        hidden: torch.Tensor = self._model(launch.inp, self._kv, hooks)
        return hidden
