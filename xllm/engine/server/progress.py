"""Liveness by progress: work in hand advances, or the engine is stuck, whatever its port answers."""

from __future__ import annotations

from xllm.base.clock import Clock
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.ports import Executor


class Progress:
    """Seconds since steps or layers last advanced while there was work.

    It looks when it is asked, so whoever wants a sharp figure asks often (the heartbeat does): what advanced between
    two looks counts as advanced at the second.
    """

    def __init__(self, core: EngineCore, executor: Executor, clock: Clock) -> None:
        self._core = core
        self._executor = executor
        self._clock = clock
        self._seen = (-1, -1, -1)
        self._since_s = clock.now()

    def idle_s(self) -> float:
        """0 when there is no work; else seconds since the last look that saw progress."""
        now_s = self._clock.now()
        seen = (self._core.step, self._executor.layers_done, self._core.num_unfinished)
        if seen != self._seen or seen[2] == 0:
            self._seen = seen
            self._since_s = now_s
        return now_s - self._since_s
