"""Steps that are interrupted or fail: whoever goes on gives the tokens it would have given anyway."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import Comparison, build_engine, request
from tests.equivalence.families import VOCAB
from xllm.engine.models import LayerHooks
from xllm.engine.runner.graph_book import GraphBook, Launch
from xllm.engine.runner.step_plan import StepPlan

GetModel = Callable[[str], SmallModel]


def make_prompts(count: int) -> dict[str, tuple[int, ...]]:
    rng = random.Random(count)
    return {f"r{i}": tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(3, 50))) for i in range(count)}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_interrupted_offline_steps_are_run_again(
    enable_prefix_caching: bool, depth: int, small_model: GetModel
) -> None:
    model = small_model("qwen3")
    engine = build_engine(
        model.path,
        depth=depth,
        block_size=4,
        max_model_len=128,
        max_num_batched_tokens=24,
        max_num_seqs=6,
        enable_prefix_caching=enable_prefix_caching,
    )

    def interrupt_some(num_steps: int) -> None:
        if num_steps % 3 == 1:
            engine.executor.interrupt(engine.core.step + 1)  # the step that is about to be handed out

    engine.before_step = interrupt_some
    prompts = make_prompts(7)
    done = engine.run([request(name, prompt, 15, offline=True) for name, prompt in prompts.items()])
    assert sum(result.status == "interrupted" for result in engine.results) > 3
    comparison = Comparison()
    for name, prompt in prompts.items():
        comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 15))
    comparison.finish("interrupted")
    engine.close()


class BrittleBook:
    """Raises out-of-memory in chosen forwards, after the real one has written its KV."""

    def __init__(self, book: GraphBook, failing: set[int]) -> None:
        self._book = book
        self._failing = failing
        self.num_forwards = 0

    def prepare(self, plan: StepPlan) -> Launch:
        return self._book.prepare(plan)

    def forward(self, launch: Launch, hooks: LayerHooks) -> torch.Tensor:
        hidden = self._book.forward(launch, hooks)
        self.num_forwards += 1
        if self.num_forwards in self._failing:
            raise torch.OutOfMemoryError("out of memory, said the test")
        return hidden


@pytest.mark.parametrize("depth", [1, 2])
def test_a_failed_step_ends_its_own_requests_and_no_others(depth: int, small_model: GetModel) -> None:
    model = small_model("qwen3")
    engine = build_engine(
        model.path, depth=depth, block_size=4, max_model_len=128, max_num_batched_tokens=24, max_num_seqs=3
    )
    runner = engine.executor._runner  # type: ignore[attr-defined]
    runner.graph_book = BrittleBook(runner.graph_book, {4, 5, 21})
    prompts = make_prompts(9)
    done = engine.run([request(name, prompt, 15) for name, prompt in prompts.items()])
    failed = [name for name in prompts if done[name, 0].finish_reason == "error"]
    assert 1 <= len(failed) < len(prompts)
    for name in failed:
        error = done[name, 0].error
        assert error is not None and error.status == 503 and "out of memory" in error.message
    comparison = Comparison()
    for name, prompt in prompts.items():
        if name not in failed:
            comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 15))
    comparison.finish("failed steps")
    again = engine.run([request(f"{name} again", prompts[name], 15) for name in failed])
    for name in failed:  # nothing of the failed steps is left in the prefix cache
        comparison.compare(name, again[f"{name} again", 0], model.reference.greedy(prompts[name], 15))
    engine.close()


def test_aborts_at_any_moment_leave_the_others_exact(small_model: GetModel) -> None:
    model = small_model("qwen3")
    engine = build_engine(
        model.path, block_size=4, num_blocks=60, max_model_len=128, max_num_batched_tokens=16, max_num_seqs=5
    )
    prompts = make_prompts(12)
    rng = random.Random(5)
    victims = set(rng.sample(sorted(prompts), 6))
    waiting = list(victims)

    def abort_one(num_steps: int) -> None:
        if waiting and num_steps % 4 == 0:
            engine.abort(waiting.pop())

    engine.before_step = abort_one
    done = engine.run([request(name, prompt, 15) for name, prompt in prompts.items()])
    aborted = [name for name in prompts if done[name, 0].finish_reason == "abort"]
    assert len(aborted) > 2
    comparison = Comparison()
    for name, prompt in prompts.items():
        if name not in aborted:
            comparison.compare(name, done[name, 0], model.reference.greedy(prompt, 15))
    comparison.finish("aborts")
    load = engine.core.load()
    assert load.blocks_used == load.blocks_leased == load.blocks_pinned == 0
    assert load.blocks_free + load.blocks_cached == load.blocks_total
    engine.close()
