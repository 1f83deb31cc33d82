"""Draws: the right distribution, with and without filters; rows independent of their batch; edge cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from xllm.engine.kernels.sampling import sample_gumbel, scalar

VOCAB = 40


def parameters(num_rows: int, **changes: Any) -> dict[str, torch.Tensor]:
    defaults: dict[str, tuple[Any, torch.dtype]] = {
        "temperature": (1.0, torch.float32),
        "top_k": (0, torch.int64),
        "top_p": (1.0, torch.float32),
        "min_p": (0.0, torch.float32),
        "seeds": (0, torch.int64),
        "choices": (0, torch.int64),
        "positions": (0, torch.int64),
    }
    return {
        name: torch.as_tensor(changes.get(name, value), dtype=dtype).expand(num_rows).contiguous()
        for name, (value, dtype) in defaults.items()
    }


FILTERS: list[dict[str, Any]] = [
    dict(),
    dict(temperature=0.6),
    dict(temperature=1.8),
    dict(top_k=5),
    dict(top_p=0.7),
    dict(min_p=0.1),
    dict(top_k=8, top_p=0.8, min_p=0.02, temperature=1.3),
]


@pytest.mark.parametrize("over", ["seeds", "positions", "choices"])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_chi_square(filters: dict[str, Any], over: str) -> None:
    """20,000 draws over seeds, positions or choices follow the renormalised distribution of the survivors."""
    num_draws = 20000
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    drawn = sample_gumbel(
        logits.expand(num_draws, -1), **parameters(num_draws, **filters, **{over: torch.arange(num_draws)})
    )
    alive = scalar.survivors(
        logits.tolist(),
        filters.get("temperature", 1.0),
        filters.get("top_k", 0),
        filters.get("top_p", 1.0),
        filters.get("min_p", 0.0),
    )
    assert set(drawn.tolist()) <= set(alive)
    total = sum(math.exp(x) for x in alive.values())
    observed = torch.bincount(drawn, minlength=VOCAB)
    chi, bins, rest_expected, rest_observed = 0.0, 0, 0.0, 0
    for token, x in alive.items():
        expected = num_draws * math.exp(x) / total
        if expected < 8:
            rest_expected, rest_observed = rest_expected + expected, rest_observed + int(observed[token])
            continue
        chi += (float(observed[token]) - expected) ** 2 / expected
        bins += 1
    if rest_expected > 4:
        chi += (rest_observed - rest_expected) ** 2 / rest_expected
        bins += 1
    freedom = max(bins - 1, 1)
    assert chi < freedom + 5 * math.sqrt(2 * freedom), f"chi-square {chi:.1f} of {freedom} degrees"


def random_rows(num_rows: int, vocab: int, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.normal(size=(num_rows, vocab)) * 2).astype(np.float32))
    return logits, parameters(
        num_rows,
        temperature=torch.from_numpy(rng.choice([0.3, 1.0, 1.7], num_rows)),
        top_k=torch.from_numpy(rng.choice([0, 1, 3, 30, 400], num_rows)),
        top_p=torch.from_numpy(rng.choice([1.0, 0.95, 0.5, 0.05], num_rows)),
        min_p=torch.from_numpy(rng.choice([0.0, 0.05, 0.9], num_rows)),
        seeds=torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, num_rows)),
        choices=torch.from_numpy(rng.integers(0, 5, num_rows)),
        positions=torch.from_numpy(rng.integers(0, 9999, num_rows)),
    )


def test_equals_the_scalar_definition() -> None:
    logits, params = random_rows(300, VOCAB, 0)
    drawn = sample_gumbel(logits, **params)
    for i in range(len(logits)):
        row = {k: v[i].item() for k, v in params.items()}
        expected = scalar.sample_one(
            logits[i].tolist(),
            seed=row["seeds"],
            choice=row["choices"],
            position=row["positions"],
            temperature=row["temperature"],
            top_k=row["top_k"],
            top_p=row["top_p"],
            min_p=row["min_p"],
        )
        assert drawn[i] == expected, row


@pytest.mark.parametrize("vocab", [VOCAB, 5000])
def test_rows_do_not_depend_on_the_batch(vocab: int) -> None:
    logits, params = random_rows(140, vocab, 1)
    together = sample_gumbel(logits, **params)
    for size in (1, 7):
        for begin in range(0, 140, size):
            part = slice(begin, begin + size)
            alone = sample_gumbel(logits[part], **{k: v[part] for k, v in params.items()})
            assert torch.equal(alone, together[part])


def test_flat_rows_need_every_id() -> None:
    """Thousands of survivors: more than the first candidates."""
    logits = torch.zeros(200, 5000)
    logits[:, 100] = 0.5
    for filters in (dict(top_p=0.9), dict(top_k=4000), dict(min_p=0.5)):
        drawn = sample_gumbel(logits, **parameters(200, seeds=torch.arange(200), **filters))
        assert len(set(drawn.tolist())) > 150


def test_ties_share_their_fate() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]).expand(500, -1)
    seeds = torch.arange(500)
    assert set(sample_gumbel(logits, **parameters(500, seeds=seeds, top_k=2)).tolist()) == {1, 2, 3, 4}
    assert set(sample_gumbel(logits, **parameters(500, seeds=seeds, top_k=1)).tolist()) == {1}
    assert set(sample_gumbel(logits, **parameters(500, seeds=seeds, top_p=0.6)).tolist()) == {1, 2, 3, 4}
    assert set(sample_gumbel(logits, **parameters(500, seeds=seeds, top_p=0.01)).tolist()) == {1}


def test_masked_ids_are_never_drawn() -> None:
    logits = torch.full((300, VOCAB), float("-inf"))
    logits[:, 7] = -50.0
    logits[:, 9] = -50.0
    for filters in (dict(), dict(top_k=5), dict(top_p=0.99), dict(top_k=39, top_p=0.5, min_p=0.01)):
        drawn = sample_gumbel(logits, **parameters(300, seeds=torch.arange(300), **filters))
        assert set(drawn.tolist()) == {7, 9}


def test_broken_rows_leave_others_alone() -> None:
    logits, params = random_rows(30, VOCAB, 2)
    expected = sample_gumbel(logits, **params)
    broken = logits.clone()
    broken[3, 5] = float("nan")
    broken[11] = float("-inf")
    broken[20, 0] = float("inf")
    drawn = sample_gumbel(broken, **params)
    fine = [i for i in range(30) if i not in (3, 11, 20)]
    assert torch.equal(drawn[fine], expected[fine])
    assert drawn.min() >= 0 and drawn.max() < VOCAB


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 100.0])
def test_extreme_temperatures(temperature: float) -> None:
    logits = torch.randn(50, VOCAB, generator=torch.Generator().manual_seed(0)) * 30
    drawn = sample_gumbel(logits, **parameters(50, temperature=temperature, seeds=torch.arange(50)))
    if temperature < 1:
        assert torch.equal(drawn, logits.argmax(dim=-1))
    else:
        assert len(set(drawn.tolist())) > 10


def test_logits_are_left_alone() -> None:
    logits, params = random_rows(20, VOCAB, 3)
    before = logits.clone()
    sample_gumbel(logits, **params)
    assert torch.equal(logits, before)
