"""Admission policies: the formula against a step-by-step simulation, and what each policy lets in."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.small_brain import BLOCK, SmallBrain
from xllm.engine.scheduler.admission.history import OutputHistory
from xllm.engine.scheduler.admission.peak import peak_tokens
from xllm.engine.scheduler.admission.table import ADMISSION_POLICIES, AdmissionSettings, build_admission
from xllm.engine.scheduler.admission.zero_evict import peak_blocks
from xllm.errors import ConfigError


def simulated_peak(held: list[int], remaining: list[int]) -> int:
    """Advance token by token; a sequence frees everything right after its last token."""
    best = 0
    for step in range(max(remaining) + 1):
        best = max(best, sum(h + step for h, k in zip(held, remaining, strict=True) if k >= step))
    return best


def test_the_peak_formula_equals_a_simulation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        n = int(rng.integers(1, 12))
        held, remaining = rng.integers(0, 200, n), rng.integers(0, 100, n)
        assert peak_tokens(held.astype(float), remaining.astype(float)) == simulated_peak(
            held.tolist(), remaining.tolist()
        )


def test_peak_in_blocks_equals_a_simulation() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        n = int(rng.integers(1, 12))
        held, remaining = rng.integers(0, 200, n), rng.integers(0, 100, n)
        steps = range(int(remaining.max()) + 1)
        want = max(
            sum(-(-(h + s) // BLOCK) for h, k in zip(held, remaining, strict=True) if k >= s) for s in steps
        )
        assert peak_blocks(held.astype(float), remaining.astype(float), BLOCK) == want


def test_remaining_lengths_are_drawn_above_what_was_produced() -> None:
    brain = SmallBrain()
    brain.add("a", 3, max_tokens=50)
    brain.step()
    (seq,) = brain.core.scheduler.running
    history = OutputHistory(window=100, prior_tokens=20, seed=0)
    drawn = history.sample_remaining([seq], 2000)[:, 0]
    assert drawn.min() >= 0
    assert drawn.max() <= 49
    # One token is produced, 50 priors of 20, then the maximum: most mass at 19 more, a tail up to 49.
    assert np.median(drawn) == 19
    assert 0.005 < np.mean(drawn > 19.5) < 0.05


def test_classes_have_their_own_history_once_it_is_long_enough() -> None:
    brain = SmallBrain(max_model_len=64)
    history = OutputHistory(window=50, prior_tokens=30, seed=0)
    for index in range(20):
        brain.add(f"a{index}", 3, max_tokens=5, tenant="short")
        brain.step()
        (seq,) = brain.core.scheduler.running
        brain.run()
        history.push(seq)
    brain.add("next", 3, max_tokens=50, tenant="short")
    brain.add("other", 3, max_tokens=50, tenant="other")
    brain.step()
    short, other = brain.core.scheduler.running
    assert set(history.lengths_for(short)) == {5}
    assert 30 in history.lengths_for(other)


def running_after(policy: str, **settings: object) -> tuple[int, SmallBrain]:
    """How many of four equal requests (16 prompt tokens, up to 32 more, 40 blocks) run after one step."""
    chosen = build_admission(policy, AdmissionSettings(**({"prior_tokens": 8} | settings)))  # type: ignore[arg-type]
    brain = SmallBrain(
        num_blocks=40, admission=chosen, max_num_batched_tokens=256, enable_prefix_caching=False
    )
    for index in range(8):
        brain.add(f"r{index}", [100 * index + i for i in range(16)], max_tokens=32)
    brain.step()
    return len(brain.core.scheduler.running), brain


def test_what_each_policy_lets_in() -> None:
    counts = {name: running_after(name)[0] for name in ADMISSION_POLICIES}
    assert counts["conservative"] == 3  # (16 + 32 + 1.5) tokens each of 160
    assert counts["zero-evict"] == 3  # 12 blocks each at the worst moment
    assert counts["watermark"] == 8  # 32 of 40 blocks
    assert counts["conservative"] < counts["past-future"] < counts["watermark"]


def test_a_refusal_is_explained_once() -> None:
    _, brain = running_after("conservative")
    brain.step()
    brain.step()
    events = [row["event"] for row in brain.core.explain("r3")]
    assert events == ["queued", "held back"]
    held = brain.core.explain("r3")[1]
    assert held["for"] == "memory"


@pytest.mark.parametrize("policy", list(ADMISSION_POLICIES))
def test_policies_finish_everything_and_never_block_a_lone_request(policy: str) -> None:
    _, brain = running_after(policy)
    brain.run()
    assert all(brain.last(f"r{i}").finish_reason == "length" for i in range(8))
    if policy in ("conservative", "zero-evict"):
        assert brain.core.scheduler.num_preemptions == 0
    lone = SmallBrain(num_blocks=16, admission=build_admission(policy, AdmissionSettings()))
    lone.add("big", 60, max_tokens=None)
    lone.run()
    assert lone.last("big").finish_reason == "length"


def test_shared_prefixes_are_counted_once() -> None:
    settings = AdmissionSettings()
    brain = SmallBrain(
        num_blocks=24, admission=build_admission("conservative", settings), max_num_batched_tokens=256
    )
    for index in range(4):  # 40 shared tokens (10 blocks), 8 more each: 10 + 4 * 3 blocks
        brain.add(f"r{index}", [*range(40), 900 + index], max_tokens=7)
    brain.step()
    assert len(brain.core.scheduler.running) == 4


def test_the_predicted_peak_is_a_load_signal() -> None:
    _, brain = running_after("conservative")
    load = brain.core.load()
    assert load.predicted_peak_blocks is not None
    assert load.blocks_used < load.predicted_peak_blocks <= load.blocks_total
    assert running_after("watermark")[1].core.load().predicted_peak_blocks is None


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="history window is 0"):
        build_admission("past-future", AdmissionSettings(history_window=0))
    with pytest.raises(ConfigError, match="unknown admission policy 'x'"):
        build_admission("x", AdmissionSettings())
