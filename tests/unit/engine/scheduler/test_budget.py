"""The time budget of a step: prompts beside a TPOT budget are cut, and never starve."""

from __future__ import annotations

import pytest

from tests.fakes.known_speed import known_speed
from tests.fakes.small_brain import SmallBrain
from xllm.engine.scheduler.limits import SloOptions
from xllm.types.request import SloBudgets


def brain_with_a_decoder(tpot_ms: float | None, **options: object) -> SmallBrain:
    brain = SmallBrain(max_num_batched_tokens=64, max_model_len=64, times=known_speed(), **options)
    brain.add("decoder", 4, max_tokens=50, slo=SloBudgets(tpot_ms=tpot_ms), ignore_eos=True)
    brain.step()
    return brain


def chunk_beside_the_decoder(brain: SmallBrain, prompt: int = 48) -> int:
    brain.add("prompt", range(500, 500 + prompt))
    batch = brain.step()
    assert batch is not None
    return max(r.num_new_tokens for r in batch.rows)


def test_a_chunk_is_as_large_as_the_tightest_tpot_allows() -> None:
    brain = brain_with_a_decoder(50.1)  # 90 % of it: 45 tokens, one of them the decoder's
    assert chunk_beside_the_decoder(brain) == 44
    cut = next(r for r in brain.core.explain("prompt") if r["event"] == "budget cut")
    assert cut["because"] == "TPOT of decoder"
    assert (cut["tokens"], cut["of"]) == (44, 48)


def test_without_a_tpot_or_with_the_switch_off_nothing_is_cut() -> None:
    assert chunk_beside_the_decoder(brain_with_a_decoder(None)) == 48
    off = brain_with_a_decoder(50.0, slo=SloOptions(token_budget=False))
    assert chunk_beside_the_decoder(off) == 48


def test_an_impossible_tpot_leaves_the_least_chunk() -> None:
    brain = brain_with_a_decoder(0.001)
    assert chunk_beside_the_decoder(brain) == 32
    brain.run()  # and everybody ends
    assert brain.last("prompt").finish_reason is not None


@pytest.mark.parametrize("tpot_ms", [10.0, 35.0, 50.0])
def test_two_prompts_share_the_time_of_a_step(tpot_ms: float) -> None:
    brain = brain_with_a_decoder(tpot_ms)
    brain.add("one", range(100, 140))
    brain.add("two", range(200, 240))
    batch = brain.step()
    assert batch is not None
    assert batch.num_tokens <= max(0.9 * tpot_ms, 33)
    brain.run()
    assert all(brain.last(name).finish_reason for name in ("one", "two"))
