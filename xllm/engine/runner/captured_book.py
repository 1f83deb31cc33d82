"""CapturedBook: forwards as graphs over persistent inputs, captured on the first step of their size.

What a graph is, is the recorder's business: :class:`ReplayRecorder` keeps the function and calls it again, so that
choice, padding and buffers are exercised on any machine; a device's recorder captures it once and replays the capture.
All graphs share one memory pool (``Recorder.pool``): they never run at the same time.

A full graph is opaque: the hooks hear about its layers before and after it, so a step is given up at its end only.
Between the pieces of a piecewise one the hooks are called layer by layer.

INVARIANTS
- A graph is recorded once per key and reads only the buffers of :class:`StepInputs`.
- Steps that no graph fits run eagerly, with the same result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch

from xllm.engine.attention import StepPlanner
from xllm.engine.memory import KVMemory
from xllm.engine.models import CausalLM, LayerHooks, NullHooks
from xllm.engine.runner.buckets import GraphChoice, GraphKey, LaunchMode
from xllm.engine.runner.graph_book import EagerBook, Launch
from xllm.engine.runner.step_inputs import StepInputs
from xllm.engine.runner.step_plan import StepPlan

Graph = Callable[[LayerHooks], torch.Tensor]
"""Runs the forward over the buffers it was recorded with: hidden states ``[T, D]``."""


class Recorder(Protocol):
    """Turns a forward over fixed buffers into a graph."""

    pool: Any
    """Memory that all graphs share; None where there is nothing to share."""

    def record(self, key: GraphKey, run: Graph) -> Graph:
        """``run`` as a graph; it is called once or more while it is recorded."""
        ...


class ReplayRecorder:
    """No capture: a graph is the function itself."""

    pool: Any = None

    def record(self, key: GraphKey, run: Graph) -> Graph:
        """Keep the function."""
        return run


class CapturedBook:
    """See the module."""

    def __init__(
        self,
        model: CausalLM,
        kv: KVMemory,
        planner: StepPlanner,
        device: torch.device,
        *,
        choice: GraphChoice,
        recorder: Recorder | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._choice = choice
        self._recorder: Recorder = recorder or ReplayRecorder()
        self._eager = EagerBook(model, kv, planner, device)
        self._inputs = StepInputs(choice.max_tokens, planner, device)
        self._graphs: dict[GraphKey, Graph] = {}
        self.num_launches: Counter[LaunchMode] = Counter()
        """Steps by the way they were launched, first ones of a graph included."""

    @property
    def num_graphs(self) -> int:
        """Graphs recorded so far."""
        return len(self._graphs)

    def prepare(self, plan: StepPlan) -> Launch:
        """Choose a graph and fill its buffers; without one, tensors of the step's own size."""
        key = self._choice.choose(len(plan.rows), len(plan.token_ids))
        if key is None:
            return self._eager.prepare(plan)
        return Launch(self._inputs.fill(plan, key.num_tokens), key)

    def forward(self, launch: Launch, hooks: LayerHooks) -> torch.Tensor:
        """Replay the step's graph, recording it first where it is missing."""
        key = launch.key
        if key is None:
            self.num_launches[LaunchMode.EAGER] += 1
            return self._eager.forward(launch, hooks)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._recorder.record(key, self._run)
        self.num_launches[key.mode] += 1
        if key.mode is LaunchMode.PIECEWISE:
            return graph(hooks)
        num_layers = self._model.spec.num_layers
        for layer in range(num_layers):
            hooks.layer_ready(layer)
        hidden = graph(NullHooks())
        for layer in range(num_layers):
            hooks.layer_done(layer)
        return hidden

    def _run(self, hooks: LayerHooks) -> torch.Tensor:
        assert self._inputs.current is not None, "a graph without a step"
        hidden: torch.Tensor = self._model(self._inputs.current, self._kv, hooks)
        return hidden
