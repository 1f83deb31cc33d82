"""The timed executor behind the production brain: streams do not depend on batch, chunking or where they resume."""

from __future__ import annotations

import queue
import subprocess
import sys

import pytest
from msgspec import structs

from xllm.base.clock import MonotonicClock
from xllm.engine.brain import build_brain
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.timed import TimedRunner, timed_logprobs
from xllm.perf.step_time import PROFILES
from xllm.types.batch import BatchResult
from xllm.types.kv_layout import build_attention_layout
from xllm.types.output import PositionLogprobs, RequestOutput
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

LAYOUT = build_attention_layout(block_size=4, num_layers=2, num_kv_heads=1, head_dim=4, dtype="float32")


def generate(
    requests: list[Request],
    *,
    budget: int = 64,
    num_blocks: int = 64,
    logprobs: list[PositionLogprobs] | None = None,
) -> dict[tuple[str, int], list[int]]:
    executor = ThreadExecutor(TimedRunner(PROFILES["instant"], vocab_size=1000, num_layers=2))
    limits = SchedulerLimits(max_num_seqs=8, max_num_batched_tokens=budget, max_model_len=100)
    core = build_brain(
        layout=LAYOUT,
        num_blocks=[num_blocks],
        limits=limits,
        vocab_size=1000,
        clock=MonotonicClock(),
    )
    results: queue.Queue[BatchResult] = queue.Queue()
    executor.start(results.put, lambda _io: None)
    for request in requests:
        core.add(request)
    tokens: dict[tuple[str, int], list[int]] = {}
    try:
        while core.num_unfinished:
            batch = core.next_batch()
            assert batch is not None
            executor.submit(batch)
            for mask in core.take_masks():
                executor.supply_mask(mask.step, mask)
            outputs: list[RequestOutput] = core.on_result(results.get(timeout=100))
            core.check()
            for out in outputs:
                assert out.error is None, out.error
                tokens.setdefault((out.request_id, out.choice), []).extend(out.token_ids)
                if logprobs is not None:
                    logprobs.extend(out.logprobs or ())
    finally:
        executor.close()
    return tokens


def request(name: str, length: int, **sampling: object) -> Request:
    params = SamplingParams(**({"max_tokens": 12} | sampling))  # type: ignore[arg-type]
    return Request(id=name, prompt_token_ids=tuple(range(length)), seed=len(name), sampling=params)


def test_streams_do_not_depend_on_batch_or_chunks() -> None:
    requests = [request("a", 30), request("bb", 9, n=3), request("ccc", 1)]
    together = generate(requests)
    alone = {k: v for r in requests for k, v in generate([r], budget=5).items()}
    crowded = generate(requests, num_blocks=26)
    assert together == alone == crowded
    assert len({tuple(v) for v in together.values()}) == 5


@pytest.mark.parametrize("penalties", [{}, {"frequency_penalty": 0.5}])
def test_a_resumed_stream_continues(penalties: dict[str, float]) -> None:
    wanted: list[PositionLogprobs] = []
    got: list[PositionLogprobs] = []
    whole = generate([request("a", 10, logprobs=2, **penalties)], logprobs=wanted)[("a", 0)]
    resumed = structs.replace(
        request("a", 10, logprobs=2, **penalties), attempt=1, resumed_output_ids=(tuple(whole[:5]),)
    )
    assert generate([resumed], logprobs=got)[("a", 0)] == whole[5:]
    assert got == wanted[5:] and len({position.token.logprob for position in wanted}) > 6


def test_output_that_is_taken_for_prompt_shows_where_there_are_penalties() -> None:
    for penalties, is_same in (({}, True), ({"presence_penalty": 0.5}, False)):
        whole = generate([request("a", 10, **penalties)])[("a", 0)]
        wrong = structs.replace(
            request("a", 10, max_tokens=7, **penalties), prompt_token_ids=(*range(10), *whole[:5])
        )
        assert (generate([wrong])[("a", 0)] == whole[5:]) == is_same


def test_logprobs_are_a_function_of_token_and_position() -> None:
    for token in (0, 7, 999):
        for position in (1, 2, 500):
            found = timed_logprobs(token, position, 5, 1000)
            assert found.token.token_id == token and found.token in found.top
            assert [top.rank for top in found.top] == [1, 2, 3, 4, 5]
            values = [top.logprob for top in found.top]
            assert values == sorted(values, reverse=True) and values[0] <= 0
            assert len({top.token_id for top in found.top}) == 5
            assert timed_logprobs(token, position, 0, 1000).token == found.token
            assert timed_logprobs(token, position + 1, 5, 1000) != found
    assert len({timed_logprobs(t, 9, 0, 1000).token.logprob for t in range(100)}) > 80


def test_masks_are_obeyed() -> None:
    tokens = generate([request("a", 5, allowed_token_ids=(4, 9), max_tokens=8)])[("a", 0)]
    assert set(tokens) <= {4, 9}
    assert len(tokens) == 8


def test_a_timed_engine_never_loads_torch() -> None:
    code = "import sys, xllm.engine.timed, xllm.engine.brain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0
