from __future__ import annotations

import queue
import threading

import pytest
import torch
from msgspec import structs

from tests.fakes.step_runner import FakeStepRunner
from xllm.engine.executor.inbox import MaskInbox
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.ports import RankLost
from xllm.engine.worker.faults import TorchFaults
from xllm.errors import CapacityError, DeadlineExceeded
from xllm.types.batch import Batch, BatchResult, BatchRow, StepMask

WAIT_S = 100


class Harness:
    def __init__(self, runner: FakeStepRunner, **options: float) -> None:
        self.results: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()
        self.executor = ThreadExecutor(runner, faults=TorchFaults(), **options)  # type: ignore[arg-type]
        self.executor.start(self.results.put, lambda io: None)

    def next(self) -> BatchResult:
        return self.results.get(timeout=WAIT_S)


def batch(step: int, *, has_mask: bool = False) -> Batch:
    return Batch(step=step, rows=(BatchRow(0, 3, 1, ()),), num_tokens=1, has_mask=has_mask)


def mask(step: int) -> StepMask:
    return StepMask(step=step, vocab_size=32, logit_rows=(0,), bits=b"\xff" * 4)


def test_steps_are_answered_in_order_on_one_other_thread() -> None:
    runner = FakeStepRunner()
    runner.gate.clear()
    harness = Harness(runner)
    for step in range(5):
        harness.executor.submit(batch(step))  # several in flight
    runner.gate.set()
    assert [harness.next().step for _ in range(5)] == list(range(5))
    assert runner.thread_names == {"xllm-executor"}
    assert threading.current_thread().name != "xllm-executor"
    harness.executor.close()


def test_an_idle_executor_tends_its_runner_until_nothing_is_left_and_again_after_a_step() -> None:
    runner = FakeStepRunner()
    runner.num_chores = 3
    harness = Harness(runner)
    assert [runner.tended.get(timeout=WAIT_S) for _ in range(3)] == [3, 2, 1]
    runner.num_chores = 1
    harness.executor.submit(batch(0))
    assert harness.next().step == 0
    assert runner.tended.get(timeout=WAIT_S) == 1
    harness.executor.close()
    assert runner.tended.empty()


def test_a_failing_step_is_an_answer_and_the_next_epoch_runs() -> None:
    runner = FakeStepRunner(failures={1: ValueError("boom"), 3: CapacityError("full", status=503)})
    harness = Harness(runner)
    for step, epoch in enumerate([0, 0, 0, 1, 2]):  # step 2 was planned on top of the failed step 1
        harness.executor.submit(structs.replace(batch(step), epoch=epoch))
    results = [harness.next() for _ in range(5)]
    assert [r.status for r in results] == ["ok", "failed", "interrupted", "failed", "ok"]
    assert 2 not in runner.ran
    boom, full = results[1].error, results[3].error
    assert boom is not None and "boom" in boom.message and boom.status == 500
    assert full is not None and full.status == 503 and full.retryable
    harness.executor.close()


def test_a_lost_device_fails_what_is_queued_and_refuses_more() -> None:
    runner = FakeStepRunner(
        failures={0: RuntimeError("CUDA error: an illegal memory access was encountered")}
    )
    runner.gate.clear()
    harness = Harness(runner)
    for step in range(3):
        harness.executor.submit(batch(step))
    runner.gate.set()
    results = [harness.next() for _ in range(3)]
    assert [r.status for r in results] == ["failed"] * 3
    assert all(r.error is not None and r.error.retryable and r.error.status == 503 for r in results)
    assert runner.ran == [0]
    with pytest.raises(RankLost) as caught:
        harness.executor.submit(batch(3))
    assert caught.value.ranks == (0,)
    harness.executor.close()


def test_masks_may_come_before_or_after_the_step_begins() -> None:
    runner = FakeStepRunner()
    harness = Harness(runner)
    harness.executor.supply_mask(0, mask(0))
    harness.executor.submit(batch(0, has_mask=True))
    assert harness.next().status == "ok"
    harness.executor.submit(batch(1, has_mask=True))
    harness.executor.supply_mask(1, mask(1))
    assert harness.next().status == "ok"
    assert [m.step for m in runner.masks] == [0, 1]
    harness.executor.close()


def test_a_mask_that_never_comes_fails_the_step_at_its_deadline() -> None:
    harness = Harness(FakeStepRunner(), mask_timeout_s=0.01)
    harness.executor.submit(batch(0, has_mask=True))
    result = harness.next()
    assert result.status == "failed"
    assert (
        result.error is not None and result.error.status == 504 and "mask of step 0" in result.error.message
    )
    harness.executor.close()


def test_close_answers_queued_steps_and_nothing_is_called_afterwards() -> None:
    runner = FakeStepRunner()
    runner.gate.clear()
    harness = Harness(runner)
    for step in range(3):
        harness.executor.submit(batch(step))
    closer = threading.Thread(target=harness.executor.close)
    closer.start()
    while not harness.executor._closed:
        threading.Event().wait(0.001)
    runner.gate.set()
    closer.join(WAIT_S)
    answered = {harness.next().step for _ in range(3)}
    assert answered == {0, 1, 2}
    assert runner.ran in ([], [0])  # at most the one that was already running
    with pytest.raises(RankLost):
        harness.executor.submit(batch(9))
    assert harness.results.empty()
    harness.executor.close()  # twice is fine


def test_close_does_not_wait_for_ever_for_a_step_that_stands_still() -> None:
    runner = FakeStepRunner()
    runner.gate.clear()
    harness = Harness(runner)
    harness.executor.submit(batch(0))
    while harness.executor.step_in_flight is None:
        threading.Event().wait(0.001)
    harness.executor.close(timeout_s=0.01)
    runner.gate.set()
    harness.executor._thread.join(WAIT_S)
    assert not harness.executor._thread.is_alive()
    assert harness.results.empty()  # it ended after close: not reported any more


def test_a_receiver_that_raises_does_not_end_the_thread() -> None:
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()

    def receive(result: BatchResult) -> None:
        seen.put(result.step)
        raise RuntimeError("the loop is closed")

    executor = ThreadExecutor(FakeStepRunner())
    executor.start(receive, lambda io: None)
    executor.submit(batch(0))
    executor.submit(batch(1))
    assert [seen.get(timeout=WAIT_S) for _ in range(2)] == [0, 1]
    executor.close()


def test_the_watchdog_sees_every_step() -> None:
    events: list[tuple[object, ...]] = []

    class Recorder:
        def step_began(self, step: int, num_tokens: int) -> None:
            events.append(("began", step, num_tokens))

        def step_ended(self, step: int, *, failed: bool) -> None:
            events.append(("ended", step, failed))

    results: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()
    executor = ThreadExecutor(FakeStepRunner(failures={1: ValueError("x")}), watchdog=Recorder())
    executor.start(results.put, lambda io: None)
    for step in (0, 1):
        executor.submit(batch(step))
        results.get(timeout=WAIT_S)
    executor.close()
    assert events == [("began", 0, 1), ("ended", 0, False), ("began", 1, 1), ("ended", 1, True)]


def test_the_inbox_keeps_nothing_of_steps_that_are_over() -> None:
    inbox = MaskInbox()
    inbox.put(3, mask(3))
    inbox.put(4, mask(4))
    inbox.forget(3)
    inbox.put(2, mask(2))
    assert len(inbox) == 1
    assert inbox.take(4, 1.0).step == 4
    with pytest.raises(DeadlineExceeded):
        inbox.take(4, 0.0)


def test_out_of_memory_is_not_a_lost_device() -> None:
    assert not TorchFaults().is_device_lost(torch.OutOfMemoryError("CUDA error: out of memory"))
    assert TorchFaults().is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert not TorchFaults().is_device_lost(ValueError("CUDA error"))
    assert TorchFaults().to_output_error(torch.OutOfMemoryError("no"), "step 1").status == 503
