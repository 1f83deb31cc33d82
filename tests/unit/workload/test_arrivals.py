from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xllm.errors import ConfigError
from xllm.workload.arrivals import ArrivalProcess, AtOnce, Constant, Gamma, OnOff, Replay, build_arrivals

PROCESSES: list[ArrivalProcess] = [
    AtOnce(),
    Constant(5.0),
    Gamma(3.0),
    Gamma(3.0, 0.2),
    OnOff(50.0, 0.0, 1.0, 9.0),
    Replay((7.0, 5.0, 6.0)),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_times_ascend_from_zero_and_repeat_with_the_seed(process: ArrivalProcess) -> None:
    times = process.times_s(200, seed=1)
    assert len(times) == 200 and times[0] == 0.0
    assert times == sorted(times) and times == process.times_s(200, seed=1)
    assert process.times_s(0, seed=1) == []


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_stated_mean_and_variance(burstiness: float) -> None:
    times = Gamma(10.0, burstiness).times_s(40_001, seed=3)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.variance(gaps) == pytest.approx(0.01 / burstiness, rel=0.12)
    assert Gamma(10.0, burstiness).times_s(5, seed=4) != times[:5]


def test_bursts_fall_into_the_busy_phase() -> None:
    times = OnOff(on_rate_per_s=100.0, off_rate_per_s=0.0, on_s=1.0, off_s=9.0).times_s(1000, seed=0)
    gaps = sorted(b - a for a, b in itertools.pairwise(times))
    num_pauses = sum(gap > 8.0 for gap in gaps)
    assert num_pauses == pytest.approx(9, abs=3)
    assert all(gap < 1.0 or gap > 8.0 for gap in gaps)


def test_replay_keeps_recorded_gaps_and_goes_round() -> None:
    assert Replay((5.0, 7.0, 6.0)).times_s(5, seed=0) == [0.0, 1.0, 2.0, 3.0, 4.0]


@given(st.sampled_from([0.0, -1.0, math.nan, math.inf]))
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError):
        Constant(rate)
    with pytest.raises(ConfigError):
        Gamma(rate)


def test_an_infinite_rate_means_at_once() -> None:
    assert isinstance(build_arrivals(math.inf), AtOnce)
    assert build_arrivals(2.0, 0.5) == Gamma(2.0, 0.5)
