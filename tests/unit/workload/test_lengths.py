from __future__ import annotations

import random
import statistics

import pytest

from xllm.errors import ConfigError
from xllm.workload.lengths import Empirical, Fixed, LogNormal, Uniform


def test_draws_stay_in_range_and_reach_both_ends() -> None:
    rng = random.Random(0)
    assert {Uniform(3, 6).draw(rng) for _ in range(200)} == {3, 4, 5, 6}
    assert Uniform.around(100, 0.25) == Uniform(75, 125)
    assert Uniform.around(100, 0.0) == Uniform(100, 100)
    assert {Empirical((5, 9)).draw(rng) for _ in range(50)} == {5, 9}
    assert Fixed(7).draw(rng) == 7
    assert min(Fixed(0).draw(rng), Uniform(0, 0).draw(rng), Empirical((0,)).draw(rng)) == 1


def test_log_normal_has_its_median_and_clamps_its_tail() -> None:
    rng = random.Random(1)
    draws = [LogNormal(200, 0.8, low=10, high=900).draw(rng) for _ in range(5000)]
    assert statistics.median(draws) == pytest.approx(200, rel=0.06)
    assert min(draws) >= 10 and max(draws) == 900


def test_impossible_distributions_are_refused() -> None:
    for build in (
        lambda: Uniform(5, 4),
        lambda: Uniform.around(10, 1.0),
        lambda: LogNormal(0, 1),
        lambda: Empirical(()),
    ):
        with pytest.raises(ConfigError):
            build()
