"""ThreadExecutor: the Executor port over one thread of this process, around anything that runs a step.

INVARIANTS
- Steps run in the order submitted, on one thread; that thread alone touches rows, KV and the device.
- Every submitted step is answered exactly once, also when it raises, when the device is lost, and at close; only a
  step that never returns stays unanswered (the health check sees that ``layers_done`` stands still).
- After a device is lost, ``submit`` raises :class:`RankLost`; steps already queued are answered ``failed``.
- After a step of epoch e that was not ok, steps of an epoch <= e are answered ``interrupted`` without being run.
- After ``close`` returned no callback is called.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from xllm.engine.executor.faults import Faults, PlainFaults
from xllm.engine.executor.inbox import MaskInbox
from xllm.engine.executor.watchdog import NullWatchdog, Watchdog
from xllm.engine.ports import RankLost
from xllm.errors import InternalError
from xllm.types.batch import Batch, BatchResult, IoResult, StepMask
from xllm.types.ids import StepId
from xllm.types.output import OutputError

_LOG = logging.getLogger(__name__)
_IDLE_POLL_S = 60.0
_TEND_AFTER_S = 0.05
"""Without a step for so long, the runner may do something else."""
_TEND_EVERY_S = 0.002
MASK_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 5.0


class StepRunner(Protocol):
    """What the thread drives; the model runner of the body, or a timed one."""

    def prepare_thread(self) -> None:
        """Called once, first thing on the executor's thread (thread counts, device)."""

    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        """Run one step; ``take_mask`` blocks until the step's mask is there or raises DeadlineExceeded."""
        ...

    def tend(self) -> bool:
        """Called while nothing runs: a few milliseconds of what makes later steps faster; False: there is nothing."""
        ...

    def interrupt(self, step: StepId) -> None:
        """From another thread: give up ``step`` between layers, if it is interruptible."""

    @property
    def layers_done(self) -> int:
        """Layers finished since start."""
        ...


class ThreadExecutor:
    """Runs steps on an own daemon thread; see the module's invariants."""

    def __init__(
        self,
        runner: StepRunner,
        *,
        faults: Faults | None = None,
        watchdog: Watchdog | None = None,
        mask_timeout_s: float = MASK_TIMEOUT_S,
        name: str = "xllm-executor",
    ) -> None:
        self._runner = runner
        self._faults: Faults = faults or PlainFaults()
        self._watchdog: Watchdog = watchdog or NullWatchdog()
        self._mask_timeout_s = mask_timeout_s
        self._steps: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._masks = MaskInbox()
        self._submit_lock = threading.Lock()
        self._callback_lock = threading.Lock()
        self._on_result: Callable[[BatchResult], None] | None = None
        self._closed = False
        self._lost: OutputError | None = None
        self._dead_epoch = -1
        self._step_in_flight: StepId | None = None
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self, on_result: Callable[[BatchResult], None], on_io: Callable[[IoResult], None]) -> None:
        """Begin; both callbacks are called from the executor's thread. ``on_io`` has no caller yet."""
        if self._on_result is not None:
            raise InternalError("ThreadExecutor.start was called twice")
        self._on_result = on_result
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        """Queue a step; returns at once.

        Raises:
            RankLost: the device is lost, or the executor is closed.
        """
        with self._submit_lock:
            if self._closed or self._lost is not None or not self._thread.is_alive():
                raise RankLost((0,))
            self._steps.put(batch)

    def supply_mask(self, step: StepId, mask: StepMask) -> None:
        """Hand over the late input of a step."""
        self._masks.put(step, mask)

    def interrupt(self, step: StepId) -> None:
        """Ask for an interruptible step to be given up between layers."""
        self._runner.interrupt(step)

    @property
    def layers_done(self) -> int:
        """Layers finished since start, over all steps."""
        return self._runner.layers_done

    @property
    def step_in_flight(self) -> StepId | None:
        """The step that is running now, or None; read by health from another thread."""
        return self._step_in_flight

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Answer what is queued as failed, wait for the running step up to ``timeout_s``, and stop."""
        with self._submit_lock:
            if not self._closed:
                self._closed = True
                self._steps.put(None)
                self._masks.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                _LOG.warning("step %s did not end within %g s of close", self._step_in_flight, timeout_s)
        with self._callback_lock:
            self._on_result = None

    def _loop(self) -> None:
        try:
            self._runner.prepare_thread()
        except Exception as error:
            _LOG.exception("the executor's thread cannot be prepared")
            self._lost = self._faults.to_output_error(error, "the executor cannot start")
        wait_s = _TEND_AFTER_S
        while True:
            try:
                batch = self._steps.get(timeout=wait_s)
            except queue.Empty:
                wait_s = _TEND_EVERY_S if self._runner.tend() else _IDLE_POLL_S
                continue
            if batch is None:
                return
            wait_s = _TEND_AFTER_S
            self._answer(self._execute(batch))

    def _execute(self, batch: Batch) -> BatchResult:
        step = batch.step
        if self._closed:
            return _failed(batch, OutputError("ServiceUnavailableError", 503, "the executor is closed", True))
        if self._lost is not None:
            return _failed(batch, self._lost)
        if batch.epoch <= self._dead_epoch:
            return BatchResult(step=step, status="interrupted", epoch=batch.epoch)
        self._step_in_flight = step
        self._watchdog.step_began(step, batch.num_tokens)
        try:
            result = self._runner.run(batch, lambda: self._masks.take(step, self._mask_timeout_s))
        except Exception as error:
            _LOG.exception("step %d failed", step)
            result = _failed(batch, self._faults.to_output_error(error, f"step {step} failed"))
            if self._faults.is_device_lost(error):
                self._lost = self._faults.to_output_error(error, "the device is lost")
        finally:
            self._step_in_flight = None
            self._masks.forget(step)
        if result.status != "ok":
            self._dead_epoch = batch.epoch
        self._watchdog.step_ended(step, failed=result.status == "failed")
        return result

    def _answer(self, result: BatchResult) -> None:
        with self._callback_lock:
            if self._on_result is None:
                return
            try:
                self._on_result(result)
            except Exception:
                _LOG.exception("the receiver of step %d's result failed", result.step)


def _failed(batch: Batch, error: OutputError) -> BatchResult:
    return BatchResult(step=batch.step, status="failed", error=error, epoch=batch.epoch)
