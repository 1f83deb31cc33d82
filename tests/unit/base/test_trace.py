from __future__ import annotations

import pytest

from xllm.base.clock import ManualClock
from xllm.base.trace import DecisionTrace, NullTrace


def test_decisions_of_a_request_in_order_with_ages() -> None:
    clock = ManualClock()
    trace = DecisionTrace(clock, capacity=8)
    trace.record("r1", "queued", {"position": 3})
    trace.record("r2", "queued")
    clock.advance(2.0)
    trace.record("r1", "admitted")
    clock.advance(1.0)
    assert [(d.event, d.age_s, d.fields) for d in trace.for_request("r1")] == [
        ("queued", 3.0, {"position": 3}),
        ("admitted", 1.0, {}),
    ]
    assert trace.for_request("r3") == []


def test_the_ring_keeps_the_newest() -> None:
    trace = DecisionTrace(ManualClock(), capacity=4)
    for number in range(11):
        trace.record("r", str(number))
        assert [d.event for d in trace.recent()] == [str(n) for n in range(max(0, number - 3), number + 1)]
    assert [d.event for d in trace.recent(2)] == ["9", "10"]
    assert trace.recent(0) == []


def test_a_ring_needs_a_slot() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        DecisionTrace(capacity=0)


def test_null_trace_keeps_nothing() -> None:
    trace = NullTrace()
    trace.record("r", "queued")
    assert trace.for_request("r") == [] and trace.recent() == []
