"""hypothesis over scheduler and cache: any sequence of operations keeps the invariants; a failure is shrunk to a few.

10^5 operations in CI (1,000 lives of up to 100); PROPERTY_LIVES asks for more.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.property.brain_model import POLICIES, BrainModel

LIVES = int(os.environ.get("PROPERTY_LIVES", "1000"))
SEEN: Counter[str] = Counter()


class BrainMachine(RuleBasedStateMachine):
    """Requests are drawn from a seed that hypothesis chooses; which operation follows which is hypothesis' choice."""

    model: BrainModel | None = None

    @initialize(
        seed=st.integers(0, 2**16), depth=st.sampled_from([1, 2]),
        kind=st.sampled_from(["paged", "state", "xtensor"]), caching=st.booleans(),
        policy=st.sampled_from(POLICIES),
    )  # fmt: skip
    def build(self, seed: int, depth: int, kind: str, caching: bool, policy: str) -> None:
        self.model = BrainModel(random.Random(seed), depth=depth, kind=kind, caching=caching, policy=policy)

    @rule(count=st.integers(1, 3))
    def add(self, count: int) -> None:
        assert self.model is not None
        for _ in range(count):
            self.model.add()

    @rule(outcome=st.sampled_from(["ok"] * 10 + ["failed", "interrupted"]))
    def submit(self, outcome: str) -> None:
        assert self.model is not None
        self.model.submit(outcome)

    @precondition(lambda self: self.model is not None and self.model.inflight)
    @rule()
    def answer(self) -> None:
        assert self.model is not None
        self.model.answer()

    @rule(steps=st.integers(1, 5))
    def run_steps(self, steps: int) -> None:
        assert self.model is not None
        for _ in range(steps):
            self.model.submit("ok")
            self.model.answer()
            self.model.core.check()

    @rule()
    def abort(self) -> None:
        assert self.model is not None
        self.model.abort()

    @rule()
    def tick(self) -> None:
        assert self.model is not None
        self.model.tick()

    @invariant()
    def holds(self) -> None:
        if self.model is not None:
            self.model.core.check()

    def teardown(self) -> None:
        if self.model is not None:
            self.model.finish()
            SEEN.update(self.model.seen)


@pytest.mark.timeout(900)
def test_any_sequence_of_operations() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        BrainMachine,
        settings=settings(
            max_examples=LIVES, stateful_step_count=100, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    missing = [
        name
        for name in ("ok", "failed", "interrupted", "hits", "preemptions", "copies", "rebound", "refused")
        if not SEEN[name]
    ]
    assert not missing, f"never happened: {missing} in {SEEN}"
