"""The learned step-time model: it converges, stays sane, and never learns nonsense."""

from __future__ import annotations

import json
import logging
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from xllm.config.model_spec import MoeSpec, read_model_spec
from xllm.errors import ConfigError
from xllm.perf.fit_cache import fit_path, save_fit, try_load_fit
from xllm.perf.learned import NUM_FACTORS, LearnedStepTime
from xllm.perf.priors import build_prior
from xllm.perf.step_time import PROFILES, StepShape, StepTimeProfile, shape_of

DEVICE = PROFILES["h200-8b"]
WRONG = replace(
    DEVICE, peak_flops=DEVICE.peak_flops / 3, bandwidth_bytes_s=DEVICE.bandwidth_bytes_s * 2, overhead_s=0
)


def draw(rng: random.Random) -> StepShape:
    rows = [(rng.randrange(10, 4000), 1) for _ in range(rng.randrange(100))]
    if rng.random() < 0.5 or not rows:
        rows.append((rng.randrange(4000), rng.randrange(2, 2048)))
    return shape_of(rows)


def teach(
    model: LearnedStepTime, truth: StepTimeProfile, steps: int, seed: int = 0, noise: float = 0.05
) -> None:
    rng = random.Random(seed)
    for _ in range(steps):
        shape = draw(rng)
        model.observe(shape, truth.estimate(shape).time_s * rng.lognormvariate(0.0, noise))


def median_error(model: LearnedStepTime, truth: StepTimeProfile, seed: int = 99) -> float:
    rng = random.Random(seed)
    shapes = [draw(rng) for _ in range(200)]
    errors = sorted(abs(model.predict(s) / truth.estimate(s).time_s - 1) for s in shapes)
    return errors[100]


@pytest.mark.parametrize("name", ["h200-8b", "cpu-0.6b"])
def test_a_wrong_prior_is_corrected_on_unseen_shapes(name: str) -> None:
    truth = PROFILES[name]
    wrong = replace(truth, peak_flops=truth.peak_flops / 3, bandwidth_bytes_s=truth.bandwidth_bytes_s * 2)
    model = LearnedStepTime(wrong)
    before = median_error(model, truth)
    teach(model, truth, 400)
    assert median_error(model, truth) < 0.1 < 0.3 < before
    assert model.error < 0.15


def test_the_terms_of_moe_and_mla_are_the_profiles() -> None:
    moe = replace(DEVICE, num_experts=128, experts_per_token=8, expert_bytes=1e8, weight_bytes=2e9)
    one, many = moe.weight_bytes_read(1), moe.weight_bytes_read(512)
    assert one == pytest.approx(2e9 + 8 * 1e8)
    assert 0.99 * (2e9 + 128e8) < many <= 2e9 + 128e8
    mla = replace(DEVICE, latent_dim=512, rope_dim=64)
    assert mla.pair_flops == 2 * DEVICE.num_layers * DEVICE.num_heads * (2 * 512 + 64)
    for profile in (moe, mla):
        shape = shape_of([(0, 700)])
        assert LearnedStepTime(profile).predict(shape) == pytest.approx(
            profile.estimate(shape).time_s, rel=0.01
        )


def test_a_drift_is_followed() -> None:
    model = LearnedStepTime(DEVICE)
    teach(model, DEVICE, 300)
    slower = replace(DEVICE, efficiency=DEVICE.efficiency / 2)
    teach(model, slower, 1500, seed=1)
    assert median_error(model, slower) < 0.1


@pytest.mark.parametrize("bad_s", [0.0, -1.0, math.nan, math.inf])
def test_times_that_are_no_times_are_dropped(bad_s: float) -> None:
    model = LearnedStepTime(DEVICE)
    model.observe(shape_of([(0, 100)]), bad_s)
    assert model.factors == LearnedStepTime(DEVICE).factors
    assert model.num_rejected == 1


def test_factors_stay_finite_and_not_negative_whatever_happens() -> None:
    model = LearnedStepTime(WRONG)
    rng = random.Random(5)
    for _ in range(3000):
        model.observe(draw(rng), 10.0 ** rng.uniform(-9, 5))
        assert all(math.isfinite(f) and f >= 0 for f in model.factors)
    assert model.predict(shape_of([(0, 10)])) >= 0


@pytest.mark.parametrize(
    "factors", [(1.0,) * 5, (1.0,) * 5 + (math.nan,), (1.0, -0.5, 1, 1, 1, 1), (1.0, math.inf, 1, 1, 1, 1)]
)
def test_a_broken_fit_is_logged_and_the_prior_used(
    factors: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = LearnedStepTime(DEVICE, factors)
    assert "starting from the prior" in caplog.text
    assert model.factors == LearnedStepTime(DEVICE).factors


def test_a_fit_comes_back_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_model_dir: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = read_model_spec(tiny_model_dir)
    path = fit_path(spec, device_name="cpu x", num_threads=2, dtype="float32")
    assert tmp_path in path.parents
    assert path != fit_path(spec, device_name="cpu y", num_threads=2, dtype="float32")
    assert path != fit_path(spec, device_name="cpu x", num_threads=2, dtype="bfloat16")
    assert try_load_fit(path) is None
    model = LearnedStepTime(WRONG)
    assert not save_fit(path, model)  # nothing learned yet
    teach(model, DEVICE, 300)
    assert save_fit(path, model)
    assert try_load_fit(path) == model.factors
    again = LearnedStepTime(WRONG, try_load_fit(path))
    assert median_error(again, DEVICE) < 0.1
    stored = json.loads(path.read_text())
    for broken in ("{", json.dumps(stored | {"factors": [1.0, None]}), json.dumps(stored | {"format": 0}), "[]",
                   json.dumps(stored).replace(str(stored["factors"][0]), "NaN")):  # fmt: skip
        path.write_text(broken)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            assert try_load_fit(path) is None
        assert "starting from the prior" in caplog.text


def test_priors_come_from_the_shape(tiny_model_dir: Path) -> None:
    spec = read_model_spec(tiny_model_dir)
    cpu = build_prior(spec, device_name="a cpu", is_gpu=False, dtype="float32", num_threads=2)
    gpu = build_prior(spec, device_name="NVIDIA H200", is_gpu=True, dtype="bfloat16", num_threads=2)
    assert gpu.bandwidth_bytes_s == 4.8e12
    assert cpu.peak_flops < gpu.peak_flops
    assert cpu.weight_bytes == pytest.approx(spec.weight_bytes("float32"))
    moe = MoeSpec(num_experts=8, top_k=2, intermediate_size=32, norm_topk_prob=True, layers=frozenset({0, 1}))
    sparse = build_prior(replace(spec, moe=moe), device_name="", is_gpu=False, dtype="float32", num_threads=1)
    assert (sparse.num_experts, sparse.experts_per_token) == (8, 2)
    assert sparse.weight_bytes_read(10**6) == pytest.approx(replace(spec, moe=moe).weight_bytes("float32"))


def test_a_profile_with_nan_is_refused() -> None:
    with pytest.raises(ConfigError, match="overhead_s is nan"):
        replace(DEVICE, overhead_s=math.nan)


def test_number_of_factors_is_that_of_the_formula() -> None:
    assert len(LearnedStepTime(DEVICE).factors) == NUM_FACTORS
