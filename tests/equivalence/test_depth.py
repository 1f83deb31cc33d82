"""Two and three steps in flight give the tokens of one: later steps are planned before the sample they need exists."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import build_engine, request
from tests.equivalence.families import VOCAB

GetModel = Callable[[str], SmallModel]

VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "penalties": {"temperature": 0.9, "presence_penalty": 0.6, "repetition_penalty": 1.2, "logprobs": 1},
    "masks": {
        "temperature": 1.0,
        "bad_words_token_ids": ((5,), (9, 4)),
        "allowed_token_ids": tuple(range(0, 300, 3)),
    },
    "prompt": {"temperature": 1.0, "prompt_logprobs": 1},
    "choices": {"temperature": 1.0, "n": 3},
}


def streams(model: SmallModel, depth: int, **options: Any) -> tuple[dict[tuple[str, int], list[int]], Any]:
    engine = build_engine(model.path, depth=depth, block_size=4, max_model_len=128, max_num_seqs=6, **options)
    rng = random.Random(31)
    prompts = {name: tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(5, 40))) for name in VARIANTS}
    done = engine.run(
        [request(name, prompts[name], 20, seed=4, **params) for name, params in VARIANTS.items()]
    )
    engine.close()
    return {key: completion.token_ids for key, completion in done.items()}, engine


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("num_blocks", [200, 40])
@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_steps_in_flight(
    depth: int, num_blocks: int, enable_prefix_caching: bool, small_model: GetModel
) -> None:
    options = {"max_num_batched_tokens": 24, "enable_prefix_caching": enable_prefix_caching}
    wanted, _ = streams(small_model("qwen3"), 1, num_blocks=200, **options)
    got, engine = streams(small_model("qwen3"), depth, num_blocks=num_blocks, **options)
    assert got == wanted
    assert engine.max_in_flight == depth
    assert sum(row.after is not None for batch in engine.batches for row in batch.rows) > 20
    usages = [completion.usage for completion in engine.completions.values()]
    num_preemptions = sum(usage.num_preemptions for usage in usages if usage is not None)
    assert (num_preemptions > 0) == (num_blocks == 40)
