"""Graphs over padded, persistent inputs: what is padded, what is written, what is recorded, when hooks are called."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.fakes.batches import make_request
from xllm.engine.models import LayerHooks, NullHooks, StepInterrupted
from xllm.engine.runner.buckets import Buckets, GraphChoice, GraphKey, LaunchMode
from xllm.engine.runner.captured_book import CapturedBook, Graph, ReplayRecorder
from xllm.engine.runner.step_inputs import StepInputs

Make = Callable[..., "TinyEngineBody"]  # noqa: F821
SENTINEL = 7.0


class CountingRecorder(ReplayRecorder):
    def __init__(self) -> None:
        self.recorded: list[GraphKey] = []
        self.replayed: list[GraphKey] = []

    def record(self, key: GraphKey, run: Graph) -> Graph:
        self.recorded.append(key)

        def replay(hooks: LayerHooks) -> torch.Tensor:
            self.replayed.append(key)
            return run(hooks)

        return replay


def captured(body: TinyEngineBody, **options: object) -> tuple[CapturedBook, CountingRecorder]:  # noqa: F821
    recorder = CountingRecorder()
    choice = GraphChoice(full=Buckets(8), piecewise=Buckets(40))
    book = CapturedBook(
        body.model, body.kv, body.planner, torch.device("cpu"), choice=choice, recorder=recorder
    )
    body.use(book)
    return book, recorder


def start(body: TinyEngineBody, num_rows: int = 3) -> None:  # noqa: F821
    for row in range(num_rows):
        body.brain.introduce(row, make_request(f"r{row}", tuple(range(5 + row, 14 + 2 * row))))


def test_padding_writes_no_kv_and_changes_no_token(make_body: Make) -> None:
    plain, padded = make_body(), make_body()
    book, recorder = captured(padded)
    for body in (plain, padded):
        for layer in range(2):
            body.kv.layer(layer).k.fill_(SENTINEL)
            body.kv.layer(layer).v.fill_(SENTINEL)
        start(body)
    for _ in range(6):
        plan = {0: None, 1: None, 2: None}
        assert padded.run(padded.brain.batch(plan)).tokens == plain.run(plain.brain.batch(plan)).tokens
        for layer in range(2):
            for ours, theirs in (
                (padded.kv.layer(layer).k, plain.kv.layer(layer).k),
                (padded.kv.layer(layer).v, plain.kv.layer(layer).v),
            ):
                assert torch.equal(ours == SENTINEL, theirs == SENTINEL)
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    prefill, decode = GraphKey(LaunchMode.PIECEWISE, 32), GraphKey(LaunchMode.FULL, 4)
    assert recorder.recorded == [prefill, decode]
    assert recorder.replayed == [prefill] + [decode] * 5
    assert book.num_launches == {LaunchMode.PIECEWISE: 1, LaunchMode.FULL: 5}
    assert book.num_graphs == 2


def test_a_step_without_a_graph_runs_eagerly(make_body: Make) -> None:
    body = make_body()
    book, recorder = captured(body)
    body.brain.introduce(0, make_request("long", tuple(range(50))))
    body.run(body.brain.batch({0: None}))
    assert (recorder.recorded, book.num_launches) == ([], {LaunchMode.EAGER: 1})


def test_buffers_stay_where_they_are_and_padding_is_zero(make_body: Make) -> None:
    body = make_body()
    inputs = StepInputs(16, body.planner, torch.device("cpu"))
    places = inputs.token_ids.data_ptr(), inputs.positions.data_ptr()
    start(body)
    body.run(body.brain.batch({0: None, 1: None, 2: None}))
    seen = []
    body.use(Spy(inputs, seen))
    body.run(body.brain.batch({0: None, 1: None, 2: None}))
    body.run(body.brain.batch({1: None}))
    assert (inputs.token_ids.data_ptr(), inputs.positions.data_ptr()) == places
    for inp, count in zip(seen, (3, 1), strict=True):
        assert len(inp.token_ids) == 16
        assert not inp.token_ids[count:].any() and not inp.positions[count:].any()
        assert inp.attention.num_tokens == 16
        assert inp.attention.write_tokens is not None
        assert inp.attention.write_tokens.tolist() == list(range(count))
        np.testing.assert_array_equal(inp.attention.seq_lens[count:], 1)


class Spy:
    """Keeps the padded inputs and runs nothing."""

    def __init__(self, inputs: StepInputs, seen: list[object]) -> None:
        self._inputs, self._seen = inputs, seen

    def prepare(self, plan):  # type: ignore[no-untyped-def]
        from xllm.engine.runner.graph_book import Launch

        inp = self._inputs.fill(plan, 16)
        self._seen.append(
            type(inp)(
                token_ids=inp.token_ids.clone(),
                positions=inp.positions.clone(),
                attention=inp.attention,
                logits_indices=inp.logits_indices,
            )
        )
        return Launch(inp, None)

    def forward(self, launch, hooks):  # type: ignore[no-untyped-def]
        return torch.zeros(16, 32)


class Giving(NullHooks):
    """Gives the step up at its first finished layer; counts what it heard."""

    def __init__(self, at_layer: int | None) -> None:
        self.heard: list[tuple[str, int]] = []
        self._at_layer = at_layer

    def layer_ready(self, layer: int) -> None:
        self.heard.append(("ready", layer))

    def layer_done(self, layer: int) -> None:
        self.heard.append(("done", layer))
        if layer == self._at_layer:
            raise StepInterrupted("enough")


def test_hooks_surround_a_full_graph_and_enter_a_piecewise_one(make_body: Make) -> None:
    body = make_body()
    book, _ = captured(body)
    start(body)
    plans: list[object] = []
    prepare = book.prepare
    book.prepare = lambda plan: plans.append(plan) or prepare(plan)  # type: ignore[method-assign,func-returns-value]
    body.run(body.brain.batch({0: None, 1: None, 2: None}))
    body.run(body.brain.batch({0: None, 1: None, 2: None}))
    piecewise, full = plans
    hooks = Giving(None)
    book.forward(prepare(full), hooks)  # type: ignore[arg-type]
    assert hooks.heard == [("ready", 0), ("ready", 1), ("done", 0), ("done", 1)]
    hooks = Giving(None)
    book.forward(prepare(piecewise), hooks)  # type: ignore[arg-type]
    assert hooks.heard == [("ready", 0), ("done", 0), ("ready", 1), ("done", 1)]
    for plan in plans:
        with pytest.raises(StepInterrupted):
            book.forward(prepare(plan), Giving(0))  # type: ignore[arg-type]
