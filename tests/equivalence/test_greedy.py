"""Greedy tokens against transformers, float32: every family, any chunking, prefix cache on and off, preemption.

Each test also asserts that the mechanism it is about has acted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import Comparison, build_engine, request, run_and_compare
from tests.equivalence.families import SHAPES, VOCAB

GetModel = Callable[[str], SmallModel]
MIXED_LENGTHS = (1, 2, 15, 16, 17, 33, 64, 131)


def make_prompts(lengths: Sequence[int], seed: int = 7) -> dict[str, tuple[int, ...]]:
    rng = random.Random(seed)
    return {f"len{n}-{i}": tuple(rng.randrange(VOCAB) for _ in range(n)) for i, n in enumerate(lengths)}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_batches_of_mixed_lengths(shape: str, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build_engine(model.path, max_num_batched_tokens=96, enable_prefix_caching=False)
    run_and_compare(engine, model.reference, make_prompts(MIXED_LENGTHS), 20, shape)
    is_mixed = [{r.num_new_tokens > 1 for r in batch.rows} == {True, False} for batch in engine.batches]
    assert sum(is_mixed) > 0, "no step held chunks and decodes together"
    engine.close()


@pytest.mark.parametrize("shape", ["llama3-rope-tied", "mistral-window", "qwen2-gqa7", "qwen3", "qwen3-moe"])
@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_chunk_sizes(shape: str, chunk: int | None, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build_engine(
        model.path,
        max_num_batched_tokens=chunk or 8192,
        max_num_seqs=min(chunk or 8, 8),
        enable_prefix_caching=False,
    )
    prompts = make_prompts((1, 9, 40, 100), seed=8)
    run_and_compare(engine, model.reference, prompts, 12, f"{shape} chunk {chunk}")
    for batch in engine.batches:
        assert batch.num_tokens <= (chunk or 8192)
    unfinished = sum(r.num_logits == 0 for batch in engine.batches for r in batch.rows)
    assert (unfinished > 0) == (chunk is not None)
    engine.close()


@pytest.mark.parametrize("shape", ["llama", "mistral-window", "qwen2-gqa7", "qwen3-yarn", "qwen3-moe"])
def test_prompts_of_several_thousand_tokens(shape: str, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build_engine(model.path, max_num_batched_tokens=1000)
    run_and_compare(engine, model.reference, make_prompts((3001, 5, 2048), seed=9), 8, f"{shape} long")
    assert sum(r.num_logits == 0 for batch in engine.batches for r in batch.rows) >= 4
    engine.close()


@pytest.mark.parametrize("shape", ["llama", "mistral-window", "qwen2-mixed-window", "qwen3", "qwen3-moe"])
@pytest.mark.parametrize("chunk", [24, None])
def test_prefix_cache_on_is_prefix_cache_off(shape: str, chunk: int | None, small_model: GetModel) -> None:
    model = small_model(shape)
    prefix = make_prompts((80,), seed=10)["len80-0"]
    tails = make_prompts((1, 7, 16, 30), seed=11)
    prompts = {"prefix itself": prefix, **{name: prefix + tail for name, tail in tails.items()}}
    prompts |= {f"again {name}": prompt for name, prompt in prompts.items()}
    cached = {}
    for enabled in (False, True):
        engine = build_engine(
            model.path,
            max_num_batched_tokens=chunk or 8192,
            max_num_seqs=8,
            enable_prefix_caching=enabled,
        )
        comparison = Comparison()
        for (
            name,
            prompt,
        ) in prompts.items():  # one after the other, so that later ones find what earlier ones left
            done = engine.run([request(name, prompt, 10)])
            comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 10))
        comparison.finish(f"{shape} prefix cache {enabled}")
        usages = [completion.usage for completion in done.values()]
        cached[enabled] = [usage.num_cached_tokens for usage in usages if usage is not None]
        engine.close()
    assert cached[False] == [0] * len(prompts)
    assert min(cached[True][1:]) >= 64, cached[True]
    # A prompt that is there as a whole recomputes its last token only (block size 16: 80 tokens are five blocks).
    assert cached[True][5] == 79, cached[True]


@pytest.mark.parametrize("shape", ["llama", "mistral-window", "qwen2-mixed-window", "qwen3", "qwen3-moe"])
@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_preemption_in_a_tiny_pool(shape: str, enable_prefix_caching: bool, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build_engine(
        model.path,
        block_size=4,
        num_blocks=24,
        max_model_len=96,
        max_num_seqs=6,
        max_num_batched_tokens=32,
        enable_prefix_caching=enable_prefix_caching,
    )
    prompts = make_prompts((9, 14, 21, 30, 12, 17), seed=12)
    run_and_compare(engine, model.reference, prompts, 24, f"{shape} tiny pool")
    usages = [completion.usage for completion in engine.completions.values()]
    assert sum(usage.num_preemptions for usage in usages if usage is not None) > 0
    engine.close()


def test_requests_that_arrive_while_others_run(small_model: GetModel) -> None:
    model = small_model("qwen3")
    engine = build_engine(model.path, max_num_batched_tokens=40, max_num_seqs=6)
    prompts = make_prompts((30, 3, 55, 17, 1, 90, 12, 44), seed=13)
    waiting = list(prompts.items())

    def arrive(num_steps: int) -> None:
        if waiting and num_steps % 3 == 0:
            name, prompt = waiting.pop()
            engine.add(request(name, prompt, 15))

    engine.before_step = arrive
    done = engine.run()
    comparison = Comparison()
    for name, prompt in prompts.items():
        comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 15))
    comparison.finish("arrivals")
    assert max(len(batch.rows) for batch in engine.batches) > 2
    engine.close()
