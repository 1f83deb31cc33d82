"""End to end on a GPU: the production brain and executor, the same reference path, tokens of transformers on the CPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import build_engine, request, run_and_compare
from tests.equivalence.families import SHAPES, VOCAB

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
GetModel = Callable[[str], SmallModel]


def make_prompts(lengths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    rng = random.Random(21)
    return {f"len{n}": tuple(rng.randrange(VOCAB) for _ in range(n)) for n in lengths}


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_tokens_of_every_shape(shape: str, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build_engine(model.path, device=DEVICE, max_num_batched_tokens=96)
    run_and_compare(engine, model.reference, make_prompts((1, 2, 16, 33, 131)), 20, f"{shape} on {DEVICE}")
    assert any({r.num_new_tokens > 1 for r in batch.rows} == {True, False} for batch in engine.batches)
    engine.close()


def test_greedy_tokens_of_long_prompts(small_model: GetModel) -> None:
    model = small_model("qwen3-yarn")
    engine = build_engine(model.path, device=DEVICE, max_num_batched_tokens=1000)
    run_and_compare(engine, model.reference, make_prompts((3001, 5, 2048)), 8, f"long on {DEVICE}")
    engine.close()


def test_preemption_and_prefix_cache(small_model: GetModel) -> None:
    model = small_model("qwen3")
    engine = build_engine(
        model.path,
        device=DEVICE,
        block_size=4,
        num_blocks=24,
        max_model_len=96,
        max_num_seqs=6,
        max_num_batched_tokens=32,
    )
    run_and_compare(
        engine, model.reference, make_prompts((9, 14, 21, 30, 12, 17)), 24, f"tiny pool on {DEVICE}"
    )
    usages = [completion.usage for completion in engine.completions.values()]
    assert sum(usage.num_preemptions for usage in usages if usage is not None) > 0
    engine.close()


def test_sampled_streams_do_not_depend_on_the_batch(small_model: GetModel) -> None:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "filters": {"top_p": 0.8, "top_k": 40, "min_p": 0.01},
        "penalties": {"presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
        "masks": {"allowed_token_ids": tuple(range(0, 300, 3)), "logit_bias": {3: 2.0}, "logprobs": 2},
        "prompt": {"prompt_logprobs": 1},
    }
    prompts = dict(zip(variants, make_prompts((9, 20, 31, 42, 53)).values(), strict=True))
    streams = []
    for together in (True, False):
        engine = build_engine(small_model("qwen3").path, device=DEVICE, max_num_batched_tokens=48)
        requests = [
            request(name, prompts[name], 20, temperature=1.0, seed=9, **params)
            for name, params in variants.items()
        ]
        for group in [requests] if together else [[r] for r in requests]:
            done = engine.run(group)
        assert all(completion.finish_reason == "length" for completion in done.values())
        streams.append({name: done[name, 0].token_ids for name in variants})
        engine.close()
    assert streams[0] == streams[1]


def test_dummy_bf16_model_runs(small_model: GetModel) -> None:
    engine = build_engine(small_model("qwen3").path, device=DEVICE, dtype="bfloat16", load_format="dummy")
    done = engine.run([request(name, prompt, 12) for name, prompt in make_prompts((3, 70, 300)).items()])
    assert all(len(completion.token_ids) == 12 and completion.error is None for completion in done.values())
    engine.close()
