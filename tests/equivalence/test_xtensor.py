"""KV in virtual ranges gives the tokens of block tables: every family, chunk size, prefix hit, preemption, broken step.

Pairs with the other mechanisms are in test_pairs.py. Each test asserts that pages were mapped, taken over or shared.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import (
    Comparison,
    build_engine,
    page_map,
    range_placement,
    request,
    run_and_compare,
)
from tests.equivalence.families import VOCAB
from xllm.engine.memory.mapper import Mapper
from xllm.engine.platform.native import native_library

GetModel = Callable[[str], SmallModel]
WIDE = "qwen3-wide-kv"  # four tokens per page
FAMILIES = [
    "llama-bias-mha",
    "mistral-window",
    "qwen2-gqa7",
    "qwen2-mixed-window",
    "qwen3",
    "qwen3-moe",
    WIDE,
]


def make_prompts(lengths: Sequence[int], seed: int = 7) -> dict[str, tuple[int, ...]]:
    rng = random.Random(seed)
    return {f"len{n}-{i}": tuple(rng.randrange(VOCAB) for _ in range(n)) for i, n in enumerate(lengths)}


def build(model: SmallModel, **options: Any) -> Any:
    defaults = {"max_model_len": 1024, "max_num_seqs": 6, "num_blocks": 600}
    return build_engine(model.path, kv_layout="xtensor", **(defaults | options))


def check_pages(engine: Any) -> None:
    """Every page was mapped by an order and in time; some while a step was running, some not at all."""
    pages, placement = page_map(engine), range_placement(engine)
    assert pages.num_mapped > 0 and placement.num_rebound > 0
    assert pages.num_repaired == pages.num_refused == 0


@pytest.mark.parametrize("shape", FAMILIES)
def test_every_family_in_batches_of_mixed_lengths(shape: str, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build(model, max_num_batched_tokens=96, enable_prefix_caching=False)
    size = engine.core.cache.block_size
    prompts = make_prompts((1, 2, size - 1, size, size + 1, 2 * size + 1, 131, 16))
    run_and_compare(engine, model.reference, prompts, 20, f"xtensor {shape}")
    check_pages(engine)
    assert page_map(engine).num_ahead > 0
    engine.close()


@pytest.mark.parametrize("shape", ["mistral-window", WIDE])
@pytest.mark.parametrize("chunk", [1, 7, 64, None])
def test_chunk_sizes(shape: str, chunk: int | None, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build(
        model,
        max_num_batched_tokens=chunk or 8192,
        max_num_seqs=min(chunk or 3, 3),
        enable_prefix_caching=False,
    )
    run_and_compare(
        engine, model.reference, make_prompts((1, 9, 40, 100), seed=8), 12, f"xtensor {shape} {chunk}"
    )
    check_pages(engine)
    engine.close()


@pytest.mark.parametrize("shape", ["mistral-window", "qwen3-moe", WIDE])
@pytest.mark.parametrize("enabled", [False, True])
def test_prefix_hits_share_whole_pages(shape: str, enabled: bool, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build(model, max_num_batched_tokens=64, enable_prefix_caching=enabled)
    size = engine.core.cache.block_size
    prefix = make_prompts((2 * size,), seed=10)[f"len{2 * size}-0"]
    tails = make_prompts((1, size, 7, 30), seed=11)
    prompts = {"prefix itself": prefix, **{name: prefix + tail for name, tail in tails.items()}}
    prompts |= {f"again {name}": prompt for name, prompt in prompts.items()}
    comparison = Comparison()
    for name, prompt in prompts.items():
        done = engine.run([request(name, prompt, 10)])
        comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 10))
    comparison.finish(f"xtensor {shape} prefix cache {enabled}")
    usages = [completion.usage for completion in done.values()]
    cached = [usage.num_cached_tokens for usage in usages if usage is not None]
    assert (range_placement(engine).num_shared > 10) == enabled
    if enabled:
        assert min(cached[1:]) >= 2 * size - 1
        assert cached[5] == 2 * size - 1  # all there: the last page is copied, its last token computed again
        assert sum(len(batch.copies) for batch in engine.batches) > 0
    else:
        assert cached == [0] * len(prompts)
    check_pages(engine)
    engine.close()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_preemption_in_a_tiny_pool(enable_prefix_caching: bool, depth: int, small_model: GetModel) -> None:
    model = small_model(WIDE)
    engine = build(
        model,
        depth=depth,
        num_blocks=24,
        max_model_len=96,
        max_num_batched_tokens=32,
        enable_prefix_caching=enable_prefix_caching,
    )
    prompts = make_prompts((9, 14, 21, 30, 12, 17), seed=12)
    run_and_compare(engine, model.reference, prompts, 24, f"xtensor tiny pool {depth}")
    usages = [completion.usage for completion in engine.completions.values()]
    assert sum(usage.num_preemptions for usage in usages if usage is not None) > 0
    check_pages(engine)
    assert page_map(engine).num_unmapped > 0  # nothing was free: pages left the ranges they lay in
    engine.close()


@pytest.mark.parametrize("depth", [1, 2])
def test_interrupted_steps(depth: int, small_model: GetModel) -> None:
    """Orders of steps that were never run are made good."""
    model = small_model(WIDE)
    engine = build(model, depth=depth, num_blocks=40, max_model_len=128, max_num_batched_tokens=24)

    def interrupt_some(num_steps: int) -> None:
        if num_steps % 3 == 1:
            engine.executor.interrupt(engine.core.step + 1)

    engine.before_step = interrupt_some
    prompts = make_prompts((9, 30, 44, 3, 17, 28, 12), seed=13)
    done = engine.run([request(name, prompt, 15, offline=True) for name, prompt in prompts.items()])
    assert sum(result.status == "interrupted" for result in engine.results) > 3
    comparison = Comparison()
    for name, prompt in prompts.items():
        comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 15))
    comparison.finish("xtensor interrupted")
    assert page_map(engine).num_refused == 0
    assert (page_map(engine).num_repaired > 0) == (depth == 2)
    engine.close()


class RefusingMapper:
    """The real one, but a share of the mappings fails as if the process had too many."""

    def __init__(self, inner: Mapper, share: float) -> None:
        self._inner = inner
        self._share = share
        self._rng = random.Random(3)

    def map(self, range_id: int, offset: int, page: int) -> None:
        self._inner.unmap(range_id, offset)  # a mapping that fails may take the old one with it
        if self._rng.random() < self._share:
            raise OSError(errno.ENOMEM, "injected")
        self._inner.map(range_id, offset, page)

    def unmap(self, range_id: int, offset: int) -> None:
        if self._rng.random() < self._share:
            raise OSError(errno.ENOMEM, "injected")
        self._inner.unmap(range_id, offset)


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("shape", ["mistral-window", WIDE])
def test_refused_mappings_change_no_token(shape: str, share: float, small_model: GetModel) -> None:
    model = small_model(shape)
    engine = build(model, num_blocks=60, max_model_len=200, max_num_batched_tokens=48)
    pages = page_map(engine)
    pages.mapper = RefusingMapper(pages.mapper, share)
    prompts = make_prompts((9, 60, 44, 3, 17, 28, 12), seed=14)
    prompts |= {f"again {name}": prompt for name, prompt in prompts.items()}
    run_and_compare(engine, model.reference, prompts, 15, f"xtensor refused {share}")
    assert pages.num_refused > 5
    assert (pages.num_mapped > 0) == (share < 1)
    engine.close()


@pytest.mark.parametrize("depth", [1, 2])
def test_aborts_give_ranges_back(depth: int, small_model: GetModel) -> None:
    model = small_model(WIDE)
    engine = build(model, depth=depth, num_blocks=60, max_model_len=128, max_num_batched_tokens=40)
    prompts = make_prompts((9, 30, 44, 3, 17, 28, 12), seed=15)

    def abort_some(num_steps: int) -> None:
        if num_steps in (4, 9):
            engine.abort(f"victim {num_steps}")

    engine.before_step = abort_some
    victims = [request(f"victim {n}", (1, 2, 3) * 9, 60) for n in (4, 9)]
    done = engine.run([*victims, *(request(name, prompt, 15) for name, prompt in prompts.items())])
    comparison = Comparison()
    for name, prompt in prompts.items():
        comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 15))
    comparison.finish("xtensor aborts")
    assert [done[f"victim {n}", 0].finish_reason for n in (4, 9)] == ["abort", "abort"]
    assert len(range_placement(engine).book.idle) == 6
    check_pages(engine)
    engine.close()


@pytest.mark.parametrize("kv_layout", ["paged", "xtensor"])
def test_rows_read_a_common_prefix_once(kv_layout: str, small_model: GetModel) -> None:
    """In pages too, though every row has the shared ones at addresses of its own."""
    library = native_library()
    if library is None:
        pytest.skip("no C++ compiler")
    model = small_model(WIDE)
    engine = build_engine(model.path, kv_layout=kv_layout, max_model_len=1024, max_num_seqs=6, num_blocks=600)
    rng = random.Random(3)
    shared = tuple(rng.randrange(VOCAB) for _ in range(200))
    run_and_compare(engine, model.reference, {"first": shared}, 4, f"{kv_layout}, alone")
    before = library.num_shared_tiles
    prompts = {f"r{i}": shared + tuple(rng.randrange(VOCAB) for _ in range(5 + i)) for i in range(5)}
    run_and_compare(engine, model.reference, prompts, 12, f"{kv_layout}, shared")
    num_saved = library.num_shared_tiles - before
    assert num_saved >= 11 * 4 * (200 // 64)  # every decode: five rows and one read of each tile
    engine.close()
