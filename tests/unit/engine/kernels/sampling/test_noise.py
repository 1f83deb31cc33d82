"""The hash: the bits of the recipe, its uniformity, its independence."""

from __future__ import annotations

import math

import numpy as np
import torch

from xllm.engine.kernels.sampling import scalar
from xllm.engine.kernels.sampling.noise import gumbel, row_keys

KNOWN_KEYS = (0x238275BC38FCBE91, 0x5BA9CF9F092DAEF7)
KNOWN_UNIFORM = 0.907376229763031


def keys(seeds: list[int], choices: list[int], positions: list[int]) -> torch.Tensor:
    return row_keys(torch.tensor(seeds), torch.tensor(choices), torch.tensor(positions))


def test_known_bits() -> None:
    """Fixed for ever: a change here changes every seeded stream."""
    assert scalar.row_key(0, 0, 0) == KNOWN_KEYS[0]
    assert scalar.row_key(42, 1, 100) == KNOWN_KEYS[1]
    assert scalar.uniform(KNOWN_KEYS[0], 0) == KNOWN_UNIFORM


def test_vectorised_equals_scalar() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.integers(-(2**63), 2**63 - 1, 50).tolist()
    choices, positions = rng.integers(0, 128, 50).tolist(), rng.integers(0, 10**6, 50).tolist()
    ids = rng.integers(0, 2**31 - 1, (50, 20)).astype(np.int32)
    ids[:, 0] = 0
    found_keys = keys(seeds, choices, positions)
    noise = gumbel(found_keys, torch.from_numpy(ids))
    for i in range(50):
        key = scalar.row_key(seeds[i], choices[i], positions[i])
        assert found_keys[i].item() & (2**64 - 1) == key
        for j in range(20):
            assert math.isclose(noise[i, j], scalar.gumbel(key, int(ids[i, j])), rel_tol=1e-5, abs_tol=1e-6)


def test_rows_and_lengths_do_not_matter() -> None:
    """Bit-equal alone, in a batch, for a sub-range of ids and for a list of ids."""
    found = keys([1, 2, 3, 2**62, -5, 0, 9], [0, 1, 2, 0, 0, 0, 0], [5, 5, 5, 1, 0, 0, 7])
    ids = torch.arange(1003, dtype=torch.int32)
    together = gumbel(found, ids)
    for i in range(7):
        assert torch.equal(gumbel(found[i : i + 1], ids)[0], together[i])
        assert torch.equal(gumbel(found[i : i + 1], ids[17:100])[0], together[i, 17:100])
    picked = torch.randperm(1003)[:31].to(torch.int32).expand(7, -1)
    assert torch.equal(gumbel(found, picked), together.gather(1, picked.long()))


def test_distribution_is_gumbel() -> None:
    """Mean, variance and a chi-square over 64 equally likely bins of the transformed noise."""
    found = keys(list(range(200)), [0] * 200, [3] * 200)
    noise = gumbel(found, torch.arange(2000, dtype=torch.int32)).double()
    count = noise.numel()
    assert abs(noise.mean() - 0.5772157) < 5 * math.sqrt(1.645 / count)
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
    uniform = torch.exp(-torch.exp(-noise))
    observed = torch.histc(uniform, bins=64, min=0, max=1)
    chi = float(((observed - count / 64) ** 2 / (count / 64)).sum())
    assert chi < 63 + 5 * math.sqrt(2 * 63)


def test_streams_are_independent() -> None:
    """Neighbouring seeds, choices, positions and ids are uncorrelated."""
    ids = torch.arange(20000, dtype=torch.int32)
    base = [7, 0, 100]
    neighbours = [base, [8, 0, 100], [7, 1, 100], [7, 0, 101], [0, 7, 100], [100, 0, 7]]
    noise = gumbel(keys(*[list(c) for c in zip(*neighbours, strict=True)]), ids).double()
    correlation = torch.corrcoef(torch.cat([noise, noise[:1].roll(1, dims=1)]))
    off_diagonal = correlation - torch.eye(len(correlation))
    assert off_diagonal.abs().max() < 5 / math.sqrt(20000)


def test_extremes_are_finite() -> None:
    noise = gumbel(keys(list(range(500)), [0] * 500, [0] * 500), torch.arange(4000, dtype=torch.int32))
    assert torch.isfinite(noise).all()
    assert noise.max() < 22.2 and noise.min() > -2.9
    assert noise.max() > 11
