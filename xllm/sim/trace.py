"""TraceRequest: one request of a simulated workload."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xllm.types.request import Request
from xllm.types.sampling import SamplingParams
from xllm.workload.arrivals import ArrivalProcess
from xllm.workload.lengths import LengthDistribution

EOS_TOKEN = 0


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """A request, its arrival, and how long its answer really is: the runner ends it there, the brain cannot know."""

    request: Request
    arrival_s: float
    output_tokens: int


def build_trace(
    *,
    num_requests: int,
    arrivals: ArrivalProcess,
    prompt_lengths: LengthDistribution,
    output_lengths: LengthDistribution,
    max_tokens: int,
    vocab_size: int,
    seed: int,
    shared_prefix: Sequence[int] = (),
    fields: Callable[[int, random.Random], dict[str, object]] = lambda _index, _rng: {},
) -> list[TraceRequest]:
    """Requests with random prompts; ``fields`` adds request fields (priority, tenant, SLO ...) per index."""
    rng = random.Random(seed)
    times = arrivals.times_s(num_requests, seed)
    trace = []
    for index, arrival_s in enumerate(times):
        own = [rng.randrange(1, vocab_size) for _ in range(prompt_lengths.draw(rng))]
        request = Request(
            id=f"r{index}",
            prompt_token_ids=(*shared_prefix, *own),
            seed=index,
            sampling=SamplingParams(max_tokens=max_tokens),
            eos_token_ids=(EOS_TOKEN,),
            **fields(index, rng),  # type: ignore[arg-type]
        )
        trace.append(TraceRequest(request, arrival_s, min(max_tokens, output_lengths.draw(rng))))
    return trace
