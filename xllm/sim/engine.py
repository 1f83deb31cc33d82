"""SimEngine: one instance on the event queue. The brain is the production one; a step lasts what its profile says.

The device runs steps one after the other, so with depth 2 the brain plans while the device works; with depth 1 the
host's time per step (``host_s``) is paid between steps.
"""

from __future__ import annotations

from collections.abc import Callable

from xllm.engine.core.engine_core import EngineCore
from xllm.engine.timed import TimedRunner
from xllm.errors import XllmError
from xllm.sim.events import EventQueue
from xllm.types.batch import Batch, StepMask
from xllm.types.output import RequestOutput
from xllm.types.request import Request

OnOutputs = Callable[[list[RequestOutput]], None]
OnStep = Callable[["SimEngine", Batch, float], None]


class SimEngine:
    """See the module; ``check`` verifies the brain's invariants after every event."""

    def __init__(
        self,
        core: EngineCore,
        runner: TimedRunner,
        events: EventQueue,
        *,
        on_outputs: OnOutputs,
        on_step: OnStep = lambda _engine, _batch, _duration_s: None,
        host_s: float = 0.0,
        check: bool = False,
    ) -> None:
        self.core = core
        self._runner = runner
        self._events = events
        self._on_outputs = on_outputs
        self._on_step = on_step
        self._host_s = host_s
        self._check = check
        self._masks: dict[int, StepMask] = {}
        self._device_free_s = 0.0
        self._tick_at_s: float | None = None

    def submit(self, request: Request) -> XllmError | None:
        """Hand a request over; returns the refusal, if it is one."""
        try:
            self.core.add(request)
        except XllmError as refusal:
            return refusal
        self._arm_deadline()
        self._pump()
        return None

    def _pump(self) -> None:
        """Order steps until the pipeline is full or nothing can run."""
        while (batch := self.core.next_batch()) is not None:
            duration_s = self._runner.duration_s(batch)
            start_s = max(self._events.clock.now() + self._host_s, self._device_free_s)
            self._device_free_s = start_s + duration_s
            self._on_step(self, batch, duration_s)
            self._events.at(self._device_free_s, lambda b=batch, d=duration_s: self._finish(b, d))  # type: ignore[misc]
            self._take_masks()

    def _take_masks(self) -> None:
        for mask in self.core.take_masks():
            self._masks[mask.step] = mask

    def _finish(self, batch: Batch, duration_s: float) -> None:
        self._take_masks()
        result = self._runner.answer(batch, self._masks.pop(batch.step, None), duration_s)
        outputs = self.core.on_result(result)
        if self._check:
            self.core.check()
        if outputs:
            self._on_outputs(outputs)
        self._pump()

    def _arm_deadline(self) -> None:
        remaining_s = self.core.next_deadline_in_s()
        if remaining_s is not None:
            self._events.after(remaining_s, self._on_deadline)

    def _on_deadline(self) -> None:
        outputs = self.core.tick()
        if outputs:
            self._on_outputs(outputs)
            self._pump()
