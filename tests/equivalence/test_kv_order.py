"""Blocks in pairs order give the tokens of blocks in tokens order, with forks, hits, cut prompts and preemption."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import build_engine, request
from tests.equivalence.families import VOCAB
from xllm.engine.memory import KVPool
from xllm.engine.platform.native import native_library

LIBRARY = native_library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None or not LIBRARY.has_dot_bf16, reason="no bf16 dot products, so no pairs order"
)


def streams(model: SmallModel, *, order: str, **options: Any) -> dict[tuple[str, int], list[int]]:
    """Seven requests of three choices each, four of them with a common beginning."""
    engine = build_engine(model.path, dtype="bfloat16", max_model_len=256, max_num_seqs=7, **options)
    pool = engine.executor._runner._kv  # type: ignore[attr-defined]
    assert isinstance(pool, KVPool) and pool.layout.order == order
    assert all(pool.layer(i).is_paired == (order == "pairs") for i in range(2))
    rng = random.Random(5)
    shared = tuple(rng.randrange(VOCAB) for _ in range(70))

    def preempt(step: int) -> None:
        running = engine.core.scheduler.running
        if step in (4, 9, 14) and len(running) > 1:
            engine.core.scheduler.preempt(running[-1], because="the test", now_s=0.0)

    engine.before_step = preempt
    asked = []
    for index in range(7):
        own = tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(3, 50)))
        prompt = shared + own if index % 2 == 0 else own
        asked.append(request(f"r{index}", prompt, 40, seed=index, n=3, temperature=1.0))
    done = engine.run(asked)
    assert engine.core.scheduler.num_preemptions >= 2 and engine.core.scheduler.num_hit_tokens > 0
    assert sum(len(batch.copies) for batch in engine.batches) > 0  # forks copy a partly filled tail
    engine.close()
    return {key: item.token_ids for key, item in done.items()}


@pytest.mark.parametrize("graphs", ["auto", "off"])
def test_tokens_do_not_depend_on_the_order(graphs: str, small_model: Callable[[str], SmallModel]) -> None:
    model = small_model("qwen3")
    wanted = streams(model, order="tokens", kv_pairs=False, graphs=graphs)
    assert streams(model, order="pairs", graphs=graphs, max_num_batched_tokens=23) == wanted
    assert len({tuple(tokens) for tokens in wanted.values()}) > 15


def test_other_layouts_and_types_keep_tokens_order(small_model: Callable[[str], SmallModel]) -> None:
    model = small_model("qwen3")
    for options in ({"dtype": "float32"}, {"dtype": "bfloat16", "block_size": 8}):
        engine = build_engine(model.path, **options)  # type: ignore[arg-type]
        assert engine.executor._runner._kv.layout.order == "tokens"  # type: ignore[attr-defined]
        engine.close()
