"""Penalties, log-probabilities and largest logits of the CPU library: every variant, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from xllm.engine.kernels.penalties import native as native_penalties
from xllm.engine.kernels.penalties import reference as torch_penalties
from xllm.engine.kernels.penalties.reference import PenalisedRow
from xllm.engine.kernels.sampling import native as native_sampling
from xllm.engine.kernels.sampling import reference as torch_sampling
from xllm.engine.kernels.scoring import native as native_scoring
from xllm.engine.kernels.scoring import reference as torch_scoring

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


@pytest.mark.parametrize("vocab", [5, 331, 5003])
def test_penalties(variant: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(1))
    rows = [
        PenalisedRow(
            index,
            rng.permutation(vocab)[: rng.integers(0, vocab)].astype(np.int64),
            rng.integers(0, 3, vocab).astype(np.float32),
            *(float(rng.normal()), float(rng.normal()), float(rng.uniform(0.5, 2))),
        )
        for index in (6, 0, 3)
    ]
    rows = [
        PenalisedRow(r.index, r.ids, r.counts[: len(r.ids)], r.frequency, r.presence, r.repetition)
        for r in rows
    ]
    got, wanted = logits.clone(), logits.clone()
    native_penalties.penalise(got, rows)
    torch_penalties.penalise(wanted, rows)
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got[[1, 2, 4, 5]], logits[[1, 2, 4, 5]]) and not torch.equal(got, logits)


@pytest.mark.parametrize("vocab", [3, 64, 331, 5003])
@pytest.mark.parametrize("rows", [None, [4, 0, 4]])
def test_scores(variant: str, vocab: int, rows: list[int] | None) -> None:
    """Sharp and flat rows, values that occur twice, forbidden tokens, more wanted than there are."""
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab))
    logits[1] *= 30
    logits[2] = logits[2].round()
    logits[3, 1:] = float("-inf")
    picked = None if rows is None else torch.tensor(rows)
    count = 6 if rows is None else len(rows)
    tokens = torch.arange(count) % vocab
    num_top = [0, 20, 3, 5, 400, 1][:count]
    got = native_scoring.score(logits, picked, tokens, num_top)
    wanted = torch_scoring.score(logits, picked, tokens, num_top)
    assert got.ranks == wanted.ranks
    assert got.logprobs == pytest.approx(wanted.logprobs, abs=2e-5)
    for i, asked in enumerate(min(n, vocab) for n in num_top):
        assert got.top_logprobs[i][:asked] == pytest.approx(wanted.top_logprobs[i][:asked], abs=2e-5)
        row = logits[i if rows is None else rows[i]]
        best = sorted(range(vocab), key=lambda token: (-float(row[token]), token))
        assert got.top_ids[i][:asked] == best[:asked]


def test_a_broken_row_is_not_sorted() -> None:
    logits = torch.zeros(3, 700)
    logits[0, ::2], logits[1], logits[2, 5] = float("nan"), float("-inf"), float("inf")
    scores = native_scoring.score(logits, None, torch.zeros(3, dtype=torch.int64), [20, 20, 20])
    assert all(np.isnan(scores.logprobs))


@pytest.mark.parametrize("vocab", [1, 15, 64, 1000, 1024, 1025, 8192, 151_936])
def test_the_largest_logit_and_where_it_stands_first(variant: str, vocab: int) -> None:
    """Equal values, masked rows, infinities and NaN in any place, as torch finds them."""
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-40, 40, (40, vocab), generator=generator).to(torch.float32)
    logits[1] = float("-inf")
    logits[2, vocab // 2] = float("inf")
    logits[3, 0] = logits[3, vocab - 1] = 50.0
    for row in range(4, 24):
        logits[row, torch.randint(vocab, (2,), generator=generator)] = float("nan")
    wanted_best, wanted_ids = torch_sampling.pick_largest(logits)
    best, ids = native_sampling.pick_largest(logits)
    torch.testing.assert_close(best, wanted_best, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ids, wanted_ids)
