"""A long random walk: add / abort / step / fail / interrupt / time on tiny pools, in every cell of the features.

The executor behind it stores what every KV slot holds and refuses to read anything but a row's own history, so wrong
sharing shows as a failure and not as a wrong token. Each stream must equal that of a lone run.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from tests.property.brain_model import POLICIES, BrainModel

NUM_CELLS = 12
OPERATIONS = int(os.environ.get("PROPERTY_OPERATIONS", "100000"))


def run_machine(
    seed: int, operations: int, *, depth: int, kind: str, caching: bool, policy: str
) -> BrainModel:
    model = BrainModel(random.Random(seed), depth=depth, kind=kind, caching=caching, policy=policy)
    actions = [model.add, model.submit, model.answer, model.abort, model.tick]
    for _ in range(operations):
        model.rng.choices(actions, [2, 8, 8, 0.3, 0.5])[0]()
        model.core.check()
    model.finish()
    return model


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["paged", "state", "xtensor"])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.timeout(600)
def test_random_operations(depth: int, kind: str, caching: bool) -> None:
    """10^5 operations over all cells, in many short lives with different pools."""
    per_life, total = 250, Counter[str]()
    lives = max(1, OPERATIONS // NUM_CELLS // per_life)
    for life in range(lives):
        policy = POLICIES[life % len(POLICIES)]
        seed = life * 100 + depth * 4 + (kind == "state") * 2 + caching + (kind == "xtensor") * 50
        model = run_machine(seed, per_life, depth=depth, kind=kind, caching=caching, policy=policy)
        total.update(model.seen)
        total.update(model.reasons)
    acted = {
        "ok",
        "failed",
        "interrupted",
        "chunked",
        "preemptions",
        "stop",
        "length",
        "abort",
        "deadline",
        "error",
        "early rejections",
    }
    if caching and kind != "state":
        acted |= {"hits", "copies"}
    if kind == "xtensor":
        acted |= {"rebound", "shared", "ahead", "mapped", "unmapped", "refused", "repaired"}
    if depth == 2:
        acted.add("overlapped")
    assert not [name for name in acted if total[name] == 0], f"never happened: {total}"
