"""Requests that cannot be in time are refused at once, with a time to come back."""

from __future__ import annotations

import pytest

from tests.fakes.known_speed import known_speed
from tests.fakes.small_brain import SmallBrain
from xllm.engine.scheduler.limits import SloOptions
from xllm.errors import CapacityError
from xllm.types.request import SloBudgets


def make(policy: str = "fcfs", **options: bool) -> SmallBrain:
    slo = SloOptions(**options)
    return SmallBrain(
        num_blocks=128,
        max_num_seqs=32,
        max_num_batched_tokens=20,
        scheduling_policy=policy,
        times=known_speed(),
        slo=slo,
    )


def fill(brain: SmallBrain, count: int = 4, ttft_ms: float | None = None) -> None:
    for i in range(count):
        brain.add(
            f"ahead{i}", [(i * 7 + j * (1 + i % 5)) % 900 for j in range(50)], slo=SloBudgets(ttft_ms=ttft_ms)
        )


def test_what_is_predicted_too_late_gets_429_and_a_time() -> None:
    brain = make()
    fill(brain, 40)  # 2000 tokens: 2 s
    brain.add("patient", range(30, 40), slo=SloBudgets(ttft_ms=3000))
    with pytest.raises(CapacityError, match="predicted after 20") as refused:
        brain.add("urgent", range(30, 40), slo=SloBudgets(ttft_ms=500))
    assert refused.value.status == 429
    assert 1.0 <= refused.value.retry_after_s <= 2.1
    assert brain.core.load().num_early_rejections == 1
    told = brain.core.explain("urgent")
    assert [r["event"] for r in told] == ["rejected"]
    assert told[0]["because"] == "predicted wait"
    assert told[0]["predicted_s"] > told[0]["budget_s"] == 0.5
    brain.run()
    assert brain.core.num_unfinished == 0


def test_age_counts() -> None:
    brain = make()
    with pytest.raises(CapacityError):
        brain.add("aged", range(50), slo=SloBudgets(ttft_ms=500), age_s=0.49)
    brain.add("fresh", range(50), slo=SloBudgets(ttft_ms=500))
    brain.run()


def test_only_those_ahead_in_the_order_count() -> None:
    brain = make("deadline")
    fill(brain, 40, ttft_ms=60_000)
    brain.add("urgent", range(30, 40), slo=SloBudgets(ttft_ms=500))
    with pytest.raises(CapacityError):
        brain.add("impossible", range(30, 40), slo=SloBudgets(ttft_ms=5))
    brain.run()


def test_urgency_refuses_the_long_one_and_takes_the_short_one() -> None:
    brain = make("urgency")
    fill(brain, 10, ttft_ms=530)  # 500 ms of work
    with pytest.raises(CapacityError):
        brain.add("long", range(60), slo=SloBudgets(ttft_ms=520))
    brain.add("short", range(700, 710), slo=SloBudgets(ttft_ms=520))
    brain.run()


def test_off_means_everybody_is_let_in() -> None:
    brain = make(early_rejection=False)
    fill(brain, 40)
    brain.add("urgent", range(30, 40), slo=SloBudgets(ttft_ms=1))
    brain.run()
    assert brain.last("urgent").finish_reason is not None


def test_requests_without_a_budget_are_never_refused() -> None:
    brain = make()
    fill(brain, 100)
    brain.run()
    assert brain.core.load().num_early_rejections == 0
