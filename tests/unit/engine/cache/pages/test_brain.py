"""The whole brain over virtual ranges: same streams as with block tables, orders complete, refusals survived."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.small_brain import SmallBrain
from xllm.engine.cache.pages.placement import RangePlacement


def drive(**options: Any) -> tuple[SmallBrain, dict[str, list[int]]]:
    brain = SmallBrain(num_blocks=24, max_num_batched_tokens=16, max_num_seqs=4, **options)
    for i in range(12):
        brain.add(f"r{i}", [*range(9), *([i] * (i % 5))], max_tokens=9 + i % 4, n=1 + (i % 4 == 0), seed=i)
    brain.run()
    return brain, {f"r{i}.{c}": brain.tokens(f"r{i}", c) for i in range(12) for c in range(1 + (i % 4 == 0))}


@pytest.mark.parametrize("caching", [False, True])
def test_every_page_is_mapped_by_an_order_and_in_time(caching: bool) -> None:
    _, plain = drive(enable_prefix_caching=caching)
    brain, streams = drive(enable_prefix_caching=caching, xtensor=True)
    assert streams == plain
    pages, placement = brain.body.pages, brain.core.cache.placement
    assert pages is not None and isinstance(placement, RangePlacement)
    assert pages.num_repaired == 0
    assert min(pages.num_mapped, pages.num_ahead, placement.num_rebound, placement.num_shared) > 0
    load = brain.core.load()
    assert load.blocks_used == 0 and load.blocks_free + load.blocks_cached == load.blocks_total


@pytest.mark.parametrize("refusal", [0.3, 1.0])
def test_a_system_that_refuses_mappings_ends_nobody(refusal: float) -> None:
    brain, streams = drive(xtensor=True, refusal=refusal)
    assert brain.body.mapper is not None and brain.body.mapper.num_refused > 10
    assert streams == drive()[1]
    assert {o.finish_reason for o in brain.outputs if o.finish_reason} <= {"length", "stop"}


def test_explain_says_where_pages_came_from() -> None:
    brain = SmallBrain(xtensor=True)
    brain.add("a", 12, max_tokens=2)
    brain.run()
    brain.add("b", 14, max_tokens=2)
    brain.run()

    def admitted(name: str) -> dict[str, Any]:
        return next(d for d in brain.core.explain(name) if d["event"] == "admitted")

    first, second = admitted("a"), admitted("b")
    assert (first["pages_shared"], first["pages_rebound"], first["pages_mapped"]) == (0, 0, 4)
    assert second["range"] == first["range"] and second["pages_shared"] == 3
    assert second["pages_rebound"] == 1 and second["pages_mapped"] == 0


def test_a_failed_step_is_made_good() -> None:
    brain = SmallBrain(xtensor=True, depth=2)
    for name in "abc":
        brain.add(name, 10, max_tokens=8)
    brain.step("failed")
    for name in "de":
        brain.add(name, 10, max_tokens=8)
    brain.run()
    assert [brain.last(name).finish_reason for name in "abcde"] == ["error"] * 3 + ["length"] * 2
    plain = SmallBrain()
    plain.add("d", 10, max_tokens=8)
    plain.run()
    assert brain.tokens("d") == plain.tokens("d")
