"""The timed executor behind the production brain: streams do not depend on batch, chunking or where they resume."""

from __future__ import annotations

import queue
import subprocess
import sys

from xllm.base.clock import MonotonicClock
from xllm.engine.brain import build_brain
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.timed import TimedRunner
from xllm.perf.step_time import PROFILES
from xllm.types.batch import BatchResult
from xllm.types.kv_layout import build_attention_layout
from xllm.types.output import RequestOutput
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

LAYOUT = build_attention_layout(block_size=4, num_layers=2, num_kv_heads=1, head_dim=4, dtype="float32")


def generate(
    requests: list[Request], *, budget: int = 64, num_blocks: int = 64
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
            outputs: list[RequestOutput] = core.on_result(results.get(timeout=10))
            core.check()
            for out in outputs:
                assert out.error is None, out.error
                tokens.setdefault((out.request_id, out.choice), []).extend(out.token_ids)
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


def test_a_resumed_stream_continues() -> None:
    whole = generate([request("a", 10)])[("a", 0)]
    resumed = Request(
        id="a", attempt=1, prompt_token_ids=tuple(range(10)), resumed_output_ids=(tuple(whole[:5]),), seed=1,
        sampling=SamplingParams(max_tokens=12),
    )  # fmt: skip
    assert generate([resumed])[("a", 0)] == whole[5:]


def test_masks_are_obeyed() -> None:
    tokens = generate([request("a", 5, allowed_token_ids=(4, 9), max_tokens=8)])[("a", 0)]
    assert set(tokens) <= {4, 9}
    assert len(tokens) == 8


def test_a_timed_engine_never_loads_torch() -> None:
    code = "import sys, xllm.engine.timed, xllm.engine.brain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
