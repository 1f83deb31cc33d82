"""Orders that know deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.known_speed import known_speed
from tests.fakes.small_brain import SmallBrain
from xllm.engine.scheduler.limits import SloOptions
from xllm.errors import ConfigError
from xllm.types.request import SloBudgets

NO_REJECTION = SloOptions(early_rejection=False, starvation_s=5.0)


def make(policy: str, **options: Any) -> SmallBrain:
    """One sequence at a time, 16 tokens per step, 1 ms per token."""
    limits = {"max_num_seqs": 1, "max_num_batched_tokens": 16, "num_blocks": 64}
    return SmallBrain(
        **(limits | options),
        scheduling_policy=policy,
        times=known_speed(),
        slo=NO_REJECTION,
        max_num_queued_reqs=0,
    )


def order_of_first_tokens(brain: SmallBrain) -> list[str]:
    brain.run(5000)
    return list(dict.fromkeys(o.request_id for o in brain.outputs if o.token_ids))


def ask(brain: SmallBrain, name: str, prompt: int, ttft_ms: float | None, **fields: Any) -> None:
    start = 1 + 31 * len(brain.core.explain("")) % 900
    ids = [(start + 7 * i) % 900 + 1 for i in range(prompt)]
    brain.add(
        name, [len(name) + ord(name[-1]), *ids[1:]], max_tokens=1, slo=SloBudgets(ttft_ms=ttft_ms), **fields
    )


def test_deadline_orders_by_arrival_plus_budget() -> None:
    brain = make("deadline")
    ask(brain, "none", 8, None)
    ask(brain, "loose", 8, 900)
    ask(brain, "tight", 8, 100)
    ask(brain, "aged", 8, 950, age_s=0.9)
    ask(brain, "offline", 8, 1, offline=True)
    assert order_of_first_tokens(brain) == ["aged", "tight", "loose", "none", "offline"]


def test_urgency_is_deadline_order_while_all_can_be_met() -> None:
    brain = make("urgency")
    ask(brain, "long", 40, 200)
    ask(brain, "short", 8, 150)
    ask(brain, "none", 8, None)
    assert order_of_first_tokens(brain) == ["short", "long", "none"]


def test_urgency_gives_up_the_least_value_per_second_when_not_all_can_be_met() -> None:
    brain = make("urgency")
    ask(brain, "long", 56, 60)  # first by deadline, but then the three below would all be late
    for name in ("a", "b", "c"):
        ask(brain, name, 10, 65)
    assert order_of_first_tokens(brain) == ["a", "b", "c", "long"]
    by_deadline = make("deadline")
    ask(by_deadline, "long", 56, 60)
    for name in ("a", "b", "c"):
        ask(by_deadline, name, 10, 65)
    assert order_of_first_tokens(by_deadline)[0] == "long"


def test_priority_is_value() -> None:
    brain = make("urgency")
    ask(brain, "valued", 56, 60, priority=-4)
    for name in ("a", "b", "c"):
        ask(brain, name, 10, 65)
    assert order_of_first_tokens(brain)[0] == "valued"


def test_a_waiting_short_prompt_overtakes_a_running_long_one() -> None:
    brain = make("urgency", max_num_seqs=4)
    ask(brain, "long", 60, 10_000)
    brain.step()
    ask(brain, "short", 8, 30)
    brain.step()
    brain.step()
    assert order_of_first_tokens(brain)[0] == "short"


def test_the_oldest_starving_request_goes_first() -> None:
    brain = make("urgency")
    ask(brain, "old", 60, 1)  # late from the begin
    for i in range(40):
        ask(brain, f"young{i}", 10, 60)
        brain.clock.advance(0.2)
        brain.step()
        if any(o.request_id == "old" and o.token_ids for o in brain.outputs):
            break
    assert 5.0 <= brain.clock.now() - 100.0 <= 5.0 + 0.2 * 10  # starvation_s, then its few steps
    brain.run(5000)


def test_keys_end_in_a_unique_number() -> None:
    for policy in ("fcfs", "priority", "deadline", "urgency"):
        brain = make(policy)
        for i in range(5):
            ask(brain, f"same{i}", 8, 100)
        keys = [s.key for s in brain.core.scheduler.waiting]
        assert len({key[-1] for key in keys}) == 5
        brain.run()


def test_the_order_is_explained() -> None:
    brain = make("urgency")
    ask(brain, "asked", 8, 100)
    brain.run()
    events = {r["event"]: r for r in brain.core.explain("asked")}
    assert events["queued"]["order"] == "(0, 1, 100.1, 1)"
    assert events["queued"]["predicted_ttft_s"] > 0
    assert "order" in events["admitted"]


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown scheduling policy 'lifo'"):
        make("lifo")
