"""Latency predictions from step costs that can be worked out in the head."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.known_speed import ONE_MS_PER_TOKEN, known_speed
from xllm.perf.latency import (
    LARGEST_PREFILL_SHARE,
    TYPICAL_OUTPUT,
    build_predictor,
)
from xllm.perf.step_time import shape_of
from xllm.perf.time_model import NullTimeModel
from xllm.types.instance import StepCosts

MS = StepCosts(overhead_s=1.0, row_s=0.0, token_s=0.001, weights_s=0.01, context_s=0.0, pair_s=0.0)


def work(**fields: Any) -> dict[str, Any]:
    idle = {"running": 0, "waiting": 0, "running_tokens": 0, "ahead_tokens": 0.0}
    return {**idle, "rows": 8, "budget": 100, **fields}


def predict_ttft_s(costs: StepCosts, work: dict[str, Any], own: float, cached: float) -> float:
    return build_predictor(costs, **work)(own, cached)[0]


def predict_outstanding_s(costs: StepCosts, work: dict[str, Any], own: float, cached: float) -> float:
    return build_predictor(costs, **work)(own, cached)[2]


def predict_tpot_s(costs: StepCosts, work: dict[str, Any], num_tokens: float) -> float:
    return build_predictor(costs, **work)(num_tokens, 0.0)[1]


def test_published_costs_are_the_model() -> None:
    model = known_speed()
    costs = model.costs(1)
    assert costs.token_s == pytest.approx(1e-3) and costs.weights_s == costs.pair_s == 0.0
    shape = shape_of([(0, 64), (100, 1)])
    mine = costs.overhead_s + costs.row_s * shape.num_rows + costs.token_s * shape.num_tokens
    assert mine == pytest.approx(model.predict(shape))
    assert NullTimeModel().costs(1) is None
    assert ONE_MS_PER_TOKEN.num_experts == 0


def test_a_first_token_waits_for_every_step_that_the_prompts_before_it_need() -> None:
    assert predict_ttft_s(MS, work(), 50, 0) == pytest.approx(1.05)
    assert predict_ttft_s(MS, work(), 250, 0) == pytest.approx(3.25)
    assert predict_ttft_s(MS, work(ahead_tokens=250.0), 50, 0) == pytest.approx(3.30)
    # Sequences that decode take part of each step's tokens, and a step is in the way.
    assert predict_ttft_s(MS, work(running=5), 95, 0) == pytest.approx(1.1 + 0.505)
    assert predict_ttft_s(MS, work(running=5), 96, 0) == pytest.approx(2.0 + 0.106 + 0.505)


def test_attention_of_a_long_prompt_is_quadratic_and_the_cached_part_is_not_paid() -> None:
    pairs = StepCosts(overhead_s=0, row_s=0, token_s=0, weights_s=0, context_s=0, pair_s=1.0)
    assert predict_ttft_s(pairs, work(), 10, 0) == pytest.approx(50)
    assert predict_ttft_s(pairs, work(), 4, 6) == pytest.approx(32)


def test_who_finds_no_row_waits_for_one() -> None:
    full = work(running=8)
    row_s = TYPICAL_OUTPUT * predict_tpot_s(MS, full, 0)
    free = predict_ttft_s(MS, work(running=7), 50, 0)
    assert predict_ttft_s(MS, full, 50, 0) > free + row_s / 8 - 0.01


def test_time_per_output_token_grows_with_rows_context_and_prefill() -> None:
    costs = StepCosts(overhead_s=0.5, row_s=0.1, token_s=0, weights_s=0.4, context_s=0.01, pair_s=0)
    alone = 0.5 + 0.1 + 0.4 + 0.01 * (10 + TYPICAL_OUTPUT / 2)
    assert predict_tpot_s(costs, work(), 10) == pytest.approx(alone)
    assert predict_tpot_s(costs, work(running=2, running_tokens=30), 10) == pytest.approx(alone + 0.2 + 0.3)
    assert predict_tpot_s(costs, work(prefill_share=0.5), 10) == pytest.approx(2 * alone)
    assert predict_tpot_s(costs, work(prefill_share=1.0), 10) == pytest.approx(
        alone / (1 - LARGEST_PREFILL_SHARE)
    )


def test_outstanding_work_is_in_the_instances_own_seconds() -> None:
    slow = StepCosts(overhead_s=3.0, row_s=0.0, token_s=0.003, weights_s=0.03, context_s=0.0, pair_s=0.0)
    some = work(running=2, ahead_tokens=100.0)
    assert predict_outstanding_s(slow, some, 50, 0) == pytest.approx(
        3 * predict_outstanding_s(MS, some, 50, 0)
    )
    assert predict_outstanding_s(MS, some, 50, 0) > predict_outstanding_s(MS, some, 10, 40)
