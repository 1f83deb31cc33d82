"""Who runs, with how many tokens, and who gives way."""

from __future__ import annotations

import pytest

from tests.fakes.small_brain import SmallBrain
from xllm.errors import ConfigError


def shape(brain: SmallBrain) -> list[tuple[int, int, int]]:
    batch = brain.step()
    assert batch is not None
    return [(r.start, r.num_new_tokens, r.num_logits) for r in batch.rows]


def test_a_prompt_is_cut_into_chunks_that_share_steps_with_decodes() -> None:
    brain = SmallBrain(max_num_batched_tokens=8)
    brain.add("a", 3)
    assert shape(brain) == [(0, 3, 1)]
    brain.add("b", [500 + i for i in range(20)])
    assert shape(brain) == [(3, 1, 1), (0, 7, 0)]
    assert shape(brain) == [(4, 1, 1), (7, 7, 0)]
    assert shape(brain) == [(5, 1, 1), (14, 6, 1)]


def test_without_chunked_prefill_a_prompt_runs_whole() -> None:
    brain = SmallBrain(max_num_batched_tokens=64, enable_chunked_prefill=False)
    brain.add("a", 60, max_tokens=1)
    brain.add("b", [500 + i for i in range(30)], max_tokens=1)
    assert shape(brain) == [(0, 60, 1)]
    assert shape(brain) == [(0, 30, 1)]
    with pytest.raises(ConfigError, match="whole prompt"):
        SmallBrain(max_num_batched_tokens=32, enable_chunked_prefill=False)


def test_a_pool_that_cannot_hold_one_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds 16 tokens"):
        SmallBrain(num_blocks=4, max_model_len=17)


def test_preemption_takes_the_last_and_recomputes_to_the_same_tokens() -> None:
    brain = SmallBrain(num_blocks=10, max_model_len=36, enable_prefix_caching=False)
    for name in ("a", "b"):
        brain.add(name, [ord(name) + i for i in range(14)], max_tokens=20)
    brain.run()
    assert brain.core.scheduler.num_preemptions > 0
    assert brain.last("a").usage.num_preemptions == 0  # type: ignore[union-attr]
    assert brain.last("b").usage.num_preemptions > 0  # type: ignore[union-attr]
    alone = SmallBrain()
    alone.add("b", [ord("b") + i for i in range(14)], max_tokens=20)
    alone.run()
    assert brain.tokens("b") == alone.tokens("b")


def test_offline_work_gives_way_first_even_when_it_came_first() -> None:
    brain = SmallBrain(num_blocks=10, max_model_len=36, enable_prefix_caching=False)
    brain.add("offline", [1 + i for i in range(14)], max_tokens=20, offline=True)
    brain.step()
    brain.add("online", [500 + i for i in range(14)], max_tokens=20)
    brain.run()
    assert brain.last("online").usage.num_preemptions == 0  # type: ignore[union-attr]
    assert brain.last("offline").usage.num_preemptions > 0  # type: ignore[union-attr]


def test_priority_orders_the_queue_and_fcfs_does_not() -> None:
    for policy, first in (("priority", "b"), ("fcfs", "a")):
        brain = SmallBrain(scheduling_policy=policy, max_num_seqs=1)
        brain.add("a", 3, priority=5)
        brain.add("b", 3, priority=-1)
        brain.run()
        ended = [o.request_id for o in brain.outputs if o.finish_reason]
        assert ended[0] == first


def test_the_watermark_keeps_room_for_growth() -> None:
    brain = SmallBrain(num_blocks=10, max_model_len=36, watermark=0.3)
    brain.add("a", [1 + i for i in range(16)], max_tokens=3)
    brain.add("b", [500 + i for i in range(16)], max_tokens=3)
    brain.step()
    assert len(brain.core.scheduler.running) == 1  # 4 blocks more would leave 2 of 10
    lone = SmallBrain(num_blocks=10, max_model_len=36, watermark=0.45)
    lone.add("c", 30)
    lone.step()
    assert len(lone.core.scheduler.running) == 1  # alone the watermark does not apply


def test_choices_fork_from_the_first_ones_prefill() -> None:
    brain = SmallBrain(enable_prefix_caching=False)
    brain.add("a", 14, n=3, max_tokens=5)
    batches = brain.run()
    assert [r.num_new_tokens for r in batches[0].rows] == [14]
    assert sorted((r.start, r.num_new_tokens) for r in batches[1].rows) == [(13, 1), (13, 1), (14, 1)]
    assert brain.body.num_copies == 2
    streams = {tuple(brain.tokens("a", c)) for c in range(3)}
    assert len(streams) == 3


def test_forks_survive_the_end_of_their_sibling() -> None:
    brain = SmallBrain()
    brain.add("a", 14, n=3, max_tokens=5)
    brain.outputs += brain.core.abort("a", choice=0)
    brain.core.check()
    brain.run()
    assert [brain.last("a", c).finish_reason for c in range(3)] == ["abort", "length", "length"]


def test_recompute_after_a_preemption_is_mostly_hits() -> None:
    """What a victim computed stays cached while memory allows: only the rest is computed again."""
    brain = SmallBrain(num_blocks=24, max_num_seqs=2, max_num_batched_tokens=64)
    brain.add("first", 40, max_tokens=20, ignore_eos=True)
    brain.add("victim", range(100, 132), max_tokens=20, ignore_eos=True)
    seen: dict[str, int] = {}
    while not brain.core.scheduler.num_preemptions:
        brain.step()
    (victim,) = brain.core.scheduler.waiting
    known = len(victim.token_ids)
    scheduler = brain.core.scheduler
    queried, hit = scheduler.num_query_tokens, scheduler.num_hit_tokens
    assert known >= 36
    brain.run()
    seen["query"] = scheduler.num_query_tokens - queried
    seen["hit"] = scheduler.num_hit_tokens - hit
    assert seen["query"] >= known
    assert seen["hit"] >= 0.6 * seen["query"], "most of it comes from the prefix cache"
    assert len(brain.tokens("victim")) == 20


def test_preemptions_per_request_are_bounded_under_a_changing_order() -> None:
    """Fair and urgent orders change while sequences run; nobody is thrown out again and again for ever."""
    for policy in ("urgency", "deadline"):
        brain = SmallBrain(num_blocks=16, max_num_seqs=4, max_preemptions=2, scheduling_policy=policy)
        for i in range(12):
            brain.add(f"r{i}", range(i * 40, i * 40 + 24), max_tokens=24, ignore_eos=True)
        brain.run(3000)
        most = max(o.usage.num_preemptions for o in brain.outputs if o.usage is not None)
        assert brain.core.scheduler.num_preemptions > 0
        assert most <= 2 + 4
