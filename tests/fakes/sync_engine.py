"""SyncEngine: EngineCore and an Executor in one process, driven to completion without an event loop.

``core.check()`` runs after every event, so a broken block invariant fails the test at the step that broke it.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from xllm.engine.core.engine_core import EngineCore
from xllm.engine.ports import Executor
from xllm.types.batch import Batch, BatchResult, IoResult
from xllm.types.output import FinishReason, OutputError, PositionLogprobs, RequestOutput, Usage
from xllm.types.request import Request

STEP_TIMEOUT_S = 60.0


@dataclass
class Completion:
    """Everything one choice of one request received."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    usage: Usage | None = None
    error: OutputError | None = None

    def add(self, output: RequestOutput, num_resumed: int) -> None:
        """Append an output; tokens must follow each other without gap, and nothing may follow the terminal one."""
        assert self.finish_reason is None, f"an output after the terminal one: {output}"
        if output.token_ids:
            assert output.first_token_index == num_resumed + len(self.token_ids), output
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or ()
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None, "prompt_logprobs were sent twice"
            self.prompt_logprobs = output.prompt_logprobs
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        self.usage, self.error = output.usage, output.error


class SyncEngine:
    """Drives a core over an executor. ``batches`` keeps every step that was run, for assertions on mechanisms."""

    def __init__(self, core: EngineCore, executor: Executor) -> None:
        self.core = core
        self.executor = executor
        self.batches: list[Batch] = []
        self.results: list[BatchResult] = []
        self.completions: dict[tuple[str, int], Completion] = {}
        self.before_step: Callable[[int], None] | None = None
        self._resumed: dict[tuple[str, int], int] = {}
        self._answers: queue.SimpleQueue[BatchResult | IoResult] = queue.SimpleQueue()
        self._num_in_flight = 0
        self.max_in_flight = 0
        executor.start(self._answers.put, self._answers.put)

    def add(self, request: Request) -> None:
        """Hand a request to the core."""
        for choice in range(request.sampling.n):
            resumed = request.resumed_output_ids
            self._resumed[request.id, choice] = len(resumed[choice]) if choice < len(resumed) else 0
            self.completions[request.id, choice] = Completion()
        self.core.add(request)
        self.core.check()

    def step(self) -> bool:
        """Submit the steps there are, then take one answer if one is owed; False when there was neither."""
        if self.before_step is not None:
            self.before_step(len(self.batches))
        while (batch := self.core.next_batch()) is not None:
            self.core.check()
            self.batches.append(batch)
            self.executor.submit(batch)
            self._num_in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self._num_in_flight)
        self._supply_masks()
        if self._num_in_flight == 0:
            self._collect(self.core.tick())
            return False
        answer = self._answers.get(timeout=STEP_TIMEOUT_S)
        if isinstance(answer, BatchResult):
            self._num_in_flight -= 1
            self.results.append(answer)
            self._collect(self.core.on_result(answer))
        else:
            self._collect(self.core.on_io(answer))
        self.core.check()
        self._supply_masks()
        return True

    def run(
        self, requests: Iterable[Request] = (), *, max_steps: int = 100_000
    ) -> dict[tuple[str, int], Completion]:
        """Add requests, drive until nothing is left, and return every completion so far by (request, choice)."""
        for request in requests:
            self.add(request)
        for _ in range(max_steps):
            if not self.step() and self.core.num_unfinished == 0:
                return self.completions
        raise AssertionError(f"{self.core.num_unfinished} requests are unfinished after {max_steps} steps")

    def abort(self, request_id: str) -> None:
        """Abort a request; its terminal outputs are collected."""
        self._collect(self.core.abort(request_id))
        self.core.check()

    def close(self) -> None:
        """Stop the executor."""
        self.executor.close()

    def _supply_masks(self) -> None:
        for mask in self.core.take_masks():
            self.executor.supply_mask(mask.step, mask)

    def _collect(self, outputs: Iterable[RequestOutput]) -> None:
        for output in outputs:
            key = (output.request_id, output.choice)
            self.completions[key].add(output, self._resumed[key])
