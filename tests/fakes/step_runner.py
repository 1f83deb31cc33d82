"""A StepRunner without a model: each row's token is start + num_new_tokens; it can be told to fail or to stand still."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from xllm.types.batch import Batch, BatchResult, StepMask


class FakeStepRunner:
    def __init__(self, *, failures: dict[int, Exception] | None = None) -> None:
        self.failures = failures or {}
        self.gate = threading.Event()
        self.gate.set()
        self.ran: list[int] = []
        self.masks: list[StepMask] = []
        self.thread_names: set[str] = set()
        self.interrupted: list[int] = []
        self.layers_done = 0
        self.num_chores = 0
        self.tended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def prepare_thread(self) -> None:
        self.thread_names.add(threading.current_thread().name)

    def tend(self) -> bool:
        before, self.num_chores = self.num_chores, max(0, self.num_chores - 1)
        is_more = self.num_chores > 0
        self.tended.put(before)  # last: whoever waits for it may change ``num_chores`` at once
        return is_more

    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        self.gate.wait(100)
        self.thread_names.add(threading.current_thread().name)
        self.ran.append(batch.step)
        if batch.has_mask:
            self.masks.append(take_mask())
        if batch.step in self.failures:
            raise self.failures[batch.step]
        self.layers_done += 1
        tokens = tuple((row.start + row.num_new_tokens,) for row in batch.rows)
        return BatchResult(step=batch.step, status="ok", tokens=tokens)

    def interrupt(self, step: int) -> None:
        self.interrupted.append(step)
