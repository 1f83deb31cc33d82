"""GraphBook: how a forward is launched. Captured graphs are one way, running the model eagerly is another."""

from __future__ import annotations

from typing import Protocol

import torch

from xllm.engine.memory import KVMemory
from xllm.engine.models import CausalLM, LayerHooks, ModelInput


class GraphBook(Protocol):
    """Launches forwards of one model over one KV pool."""

    def forward(self, inp: ModelInput, hooks: LayerHooks) -> torch.Tensor:
        """The hidden states ``[T, D]`` of a step; stores its KV. Valid until the next call.

        Raises:
            StepInterrupted: by the hooks.
        """
        ...


class EagerBook:
    """No graphs: every step runs the model's own code."""

    def __init__(self, model: CausalLM, kv: KVMemory) -> None:
        self._model = model
        self._kv = kv

    def forward(self, inp: ModelInput, hooks: LayerHooks) -> torch.Tensor:
        """Run the model."""
        hidden: torch.Tensor = self._model(inp, self._kv, hooks)
        return hidden
