"""StepLoop: drives an EngineCore over an Executor on the event loop.

INVARIANTS
- The core is touched on the loop's thread only; the executor's answers are brought there.
- The next step is submitted before the outputs of the last one are handed out, so that encoding them overlaps it.
- As many steps are in flight as the core allows (its depth); the code is the same for every depth.
- A mask is handed over as soon as the step it is for is the oldest in flight, before further steps are planned.
- Any exception of core or executor ends the loop: every unfinished request gets an error output, then ``on_dead`` is
  called, once. After that nothing is submitted and answers are ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from xllm.base.waits import Wait, WaitTable
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.ports import Executor
from xllm.errors import InstanceLost, XllmError
from xllm.types.batch import BatchResult, IoResult
from xllm.types.ids import RequestId, StepId
from xllm.types.output import OutputError, RequestOutput
from xllm.types.request import Request

log = logging.getLogger(__name__)

T = TypeVar("T")
Deliver = Callable[[StepId, list[RequestOutput]], None]


class StepLoop:
    """See the module. ``deliver`` receives outputs, also empty lists after steps without any."""

    def __init__(
        self,
        core: EngineCore,
        executor: Executor,
        *,
        waits: WaitTable,
        deliver: Deliver,
        on_dead: Callable[[XllmError], None],
        max_step_s: float,
    ) -> None:
        self.core = core
        self.executor = executor
        self.is_dead = False
        self._waits = waits
        self._deliver = deliver
        self._on_dead = on_dead
        self._max_step_s = max_step_s
        self._loop = asyncio.get_running_loop()
        self._turn_planned = False
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_due_s = 0.0
        self._step_waits: dict[StepId, Wait] = {}

    def start(self) -> None:
        """Start the executor."""
        self.executor.start(self._bring_result, self._bring_io)

    def add(self, request: Request) -> None:
        """Queue a request; raises RequestError or CapacityError when the core refuses it, InstanceLost when dead."""
        if self.is_dead:
            raise InstanceLost("the engine has failed and is about to exit")
        self.core.add(request)
        self._plan_turn()

    def abort(
        self, request_id: RequestId, attempt: int = 0, choice: int | None = None, reason: str = "abort"
    ) -> None:
        """End a request; its terminal outputs are delivered."""
        if not self.is_dead:
            self._deliver(self.core.step, self.core.abort(request_id, attempt, choice, reason))
            self._plan_turn()  # blocks may have become free

    def abort_all(self, reason: str, error: OutputError | None) -> None:
        """End every unfinished request."""
        if not self.is_dead:
            self._deliver(self.core.step, self.core.abort_all(reason, error))

    def fail(self, cause: BaseException) -> None:
        """End the loop: the engine cannot go on. A second call does nothing."""
        if self.is_dead:
            return
        self.is_dead = True
        text = cause.message if isinstance(cause, XllmError) else f"{type(cause).__name__}: {cause}"
        log.critical("the engine failed: %s", text, exc_info=cause)
        error = InstanceLost(f"the engine failed: {text}", hint="the request may be sent again")
        self._stop_timers()
        outputs: list[RequestOutput] = []
        try:
            wire_error = OutputError(type(error).__name__, error.status, error.message, error.retryable)
            outputs = self.core.abort_all("engine failed", wire_error)
        except Exception:
            log.exception("the core cannot end its requests; the server ends them")
        self._deliver(self.core.step, outputs)
        self._on_dead(error)

    def close(self) -> None:
        """Stop planning steps; the executor is closed by whoever owns it."""
        self.is_dead = True
        self._stop_timers()

    # -- private --

    def _bring_result(self, result: BatchResult) -> None:
        self._bring(self._take_result, result)

    def _bring_io(self, result: IoResult) -> None:
        self._bring(self._take_io, result)

    def _bring(self, take: Callable[[T], None], result: T) -> None:
        try:
            self._loop.call_soon_threadsafe(take, result)
        except RuntimeError:  # the event loop is closed: the process is ending
            log.debug("a result came after the end")

    def _take_result(self, result: BatchResult) -> None:
        if self.is_dead:
            return
        wait = self._step_waits.pop(result.step, None)
        if wait is not None:
            wait.__exit__(None, None, None)
        try:
            outputs = self.core.on_result(result)
        except Exception as exc:
            self.fail(exc)
            return
        failure = self._try_steps()
        self._deliver(result.step, outputs)
        if failure is not None:
            self.fail(failure)

    def _take_io(self, result: IoResult) -> None:
        if self.is_dead:
            return
        try:
            outputs = self.core.on_io(result)
        except Exception as exc:
            self.fail(exc)
            return
        self._deliver(self.core.step, outputs)
        self._plan_turn()

    def _plan_turn(self) -> None:
        """Plan steps once in this turn of the loop, after everything that has arrived was added."""
        if not self._turn_planned and not self.is_dead:
            self._turn_planned = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_planned = False
        failure = self._try_steps()
        if failure is not None:
            self.fail(failure)

    def _try_steps(self) -> Exception | None:
        """Submit every step the core has; returns what went wrong."""
        if self.is_dead:
            return None
        core, executor = self.core, self.executor
        try:
            self._supply_masks()  # a step that runs already may wait for its own
            while (batch := core.next_batch()) is not None:
                executor.submit(batch)
                allowed_s = self._max_step_s * (1 + len(self._step_waits))
                wait = self._waits.watch("step loop", f"step {batch.step} of the executor", allowed_s)
                self._step_waits[batch.step] = wait.__enter__()
                self._supply_masks()
            self._plan_tick()
        except Exception as exc:
            return exc
        return None

    def _supply_masks(self) -> None:
        for mask in self.core.take_masks():
            self.executor.supply_mask(mask.step, mask)

    def _plan_tick(self) -> None:
        in_s = self.core.next_deadline_in_s()
        if in_s is None:
            return
        due_s = self._loop.time() + in_s
        if self._ticker is not None:
            if self._tick_due_s <= due_s:
                return  # it fires early enough and plans again
            self._ticker.cancel()
        # uvloop's handle of a delay that rounds to 0 does not know when it is due: we remember it.
        self._ticker, self._tick_due_s = self._loop.call_later(in_s, self._tick), due_s

    def _tick(self) -> None:
        self._ticker = None
        if self.is_dead:
            return
        try:
            outputs = self.core.tick()
        except Exception as exc:
            self.fail(exc)
            return
        self._deliver(self.core.step, outputs)
        self._turn()

    def _stop_timers(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for wait in self._step_waits.values():
            wait.__exit__(None, None, None)
        self._step_waits.clear()
