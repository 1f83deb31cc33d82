from __future__ import annotations

from collections.abc import Callable

import torch

from xllm.engine.runner.dummy_weights import fill_with_dummy_weights


def test_the_seed_decides_every_weight(make_body: Callable[..., TinyEngineBody]) -> None:  # noqa: F821
    first, same, other = make_body().model, make_body().model, make_body().model
    for model, seed in ((first, 7), (same, 7), (other, 8)):
        fill_with_dummy_weights(model, seed)
    pairs = list(zip(first.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)
    assert all(torch.isfinite(a).all() for a, _, _ in pairs)
