"""A sampled stream is a function of (model, request) alone: not of the batch, chunking, preemption or resume point."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.equivalence.conftest import SmallModel
from tests.equivalence.engines import build_engine, request
from tests.equivalence.families import VOCAB
from tests.fakes.sync_engine import Completion

GetModel = Callable[[str], SmallModel]
NUM_TOKENS = 24

PARAMETERS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0},
    "top-p": {"temperature": 0.8, "top_p": 0.7},
    "top-k": {"temperature": 1.3, "top_k": 20},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
    "penalties": {
        "temperature": 0.9,
        "presence_penalty": 0.6,
        "frequency_penalty": 0.4,
        "repetition_penalty": 1.2,
    },
    "bias": {"temperature": 1.0, "logit_bias": {3: 5.0, 7: -100.0}},
    "masks": {
        "temperature": 1.0,
        "bad_words_token_ids": ((5,), (9, 4)),
        "allowed_token_ids": tuple(range(0, 300, 3)),
    },
    "greedy": {"temperature": 0.0},
}


def make_prompt(name: str) -> tuple[int, ...]:
    rng = random.Random(name)
    return tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(5, 60)))


@pytest.fixture(scope="module")
def alone(small_model: GetModel) -> dict[str, list[int]]:
    """Every stream as it is when nothing else runs."""
    engine = build_engine(small_model("qwen3").path, enable_prefix_caching=False)
    streams = {}
    for name, params in PARAMETERS.items():
        done = engine.run([request(name, make_prompt(name), NUM_TOKENS, seed=11, **params)])
        streams[name] = done[name, 0].token_ids
    engine.close()
    return streams


def check(done: dict[tuple[str, int], Completion], alone: dict[str, list[int]]) -> None:
    assert {name: done[name, 0].token_ids for name in PARAMETERS} == alone


@pytest.mark.parametrize("chunk", [9, 64, None])
def test_any_batch_and_chunking_gives_the_same_tokens(
    chunk: int | None, small_model: GetModel, alone: dict[str, list[int]]
) -> None:
    engine = build_engine(
        small_model("qwen3").path, max_num_batched_tokens=chunk or 8192, max_num_seqs=min(chunk or 32, 32)
    )
    requests = [
        request(name, make_prompt(name), NUM_TOKENS, seed=11, **params) for name, params in PARAMETERS.items()
    ]
    others = [request(f"other {i}", make_prompt(f"o{i}"), 9 + i, seed=i, temperature=1.0) for i in range(6)]
    random.Random(chunk or 0).shuffle(requests)
    check(engine.run(requests + others), alone)
    assert max(len(batch.rows) for batch in engine.batches) > 4
    engine.close()


def test_preemption_does_not_change_a_sampled_stream(
    small_model: GetModel, alone: dict[str, list[int]]
) -> None:
    engine = build_engine(
        small_model("qwen3").path,
        block_size=4,
        num_blocks=40,
        max_model_len=128,
        max_num_seqs=8,
        max_num_batched_tokens=48,
        enable_prefix_caching=False,
    )
    requests = [
        request(name, make_prompt(name), NUM_TOKENS, seed=11, **params) for name, params in PARAMETERS.items()
    ]
    check(engine.run(requests), alone)
    usages = [completion.usage for completion in engine.completions.values()]
    assert sum(usage.num_preemptions for usage in usages if usage is not None) > 0
    engine.close()


@pytest.mark.parametrize("num_streamed", [1, 10, NUM_TOKENS - 1])
def test_a_resumed_stream_goes_on_as_if_nothing_had_happened(
    num_streamed: int, small_model: GetModel, alone: dict[str, list[int]]
) -> None:
    engine = build_engine(small_model("qwen3").path)
    for name, params in PARAMETERS.items():
        streamed = alone[name][:num_streamed]
        resumed = request(name, make_prompt(name), NUM_TOKENS, seed=11, resumed=[streamed], **params)
        done = engine.run([resumed])[name, 0]
        assert done.token_ids == alone[name][num_streamed:], name
        assert done.finish_reason == "length"
    engine.close()


def test_choices_differ_from_each_other_but_not_between_runs(small_model: GetModel) -> None:
    params = {"temperature": 1.0, "n": 4}
    streams = []
    for crowd in (0, 5):
        engine = build_engine(small_model("qwen3").path, max_num_batched_tokens=64)
        requests = [request(f"o{i}", make_prompt(f"o{i}"), 20, seed=i, temperature=1.0) for i in range(crowd)]
        done = engine.run([*requests, request("many", make_prompt("many"), 20, seed=3, **params)])
        streams.append([done["many", choice].token_ids for choice in range(4)])
        copies = sum(len(batch.copies) for batch in engine.batches)
        assert copies > 0 or len(make_prompt("many")) % 16 == 1, "the choices did not fork from one prefill"
        engine.close()
    assert streams[0] == streams[1]
    assert len({tuple(stream) for stream in streams[0]}) == 4


def test_the_seed_decides(small_model: GetModel) -> None:
    engine = build_engine(small_model("qwen3").path)
    prompt = make_prompt("seeded")
    requests = [
        request(f"seed {s} {i}", prompt, 20, seed=s, temperature=1.0)
        for s in (1, 2, 2**63 - 1)
        for i in (0, 1)
    ]
    done = engine.run(requests)
    streams = {name: tuple(completion.token_ids) for (name, _), completion in done.items()}
    assert all(streams[f"seed {s} 0"] == streams[f"seed {s} 1"] for s in (1, 2, 2**63 - 1))
    assert len(set(streams.values())) == 3
    engine.close()
