"""`bench throughput` and `bench latency`: an engine without a server, fed with token ids.

The engine is handed in as a function (the command line wraps an `xllm.LLM`), so this file knows no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xllm.types.sampling import SamplingParams
from xllm.workload.prompt import PromptSample

LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)


class _Completion(Protocol):
    @property
    def token_ids(self) -> Sequence[int]: ...


class Answer(Protocol):
    """The part of a `xllm.RequestOutput` that is counted."""

    @property
    def prompt_token_ids(self) -> Sequence[int] | None:
        """The prompt as the engine saw it."""
        ...

    @property
    def outputs(self) -> Sequence[_Completion]:
        """One entry per choice."""
        ...


Prompt = dict[str, list[int]]
Generate = Callable[[list[Prompt], list[SamplingParams]], Sequence[Answer]]
"""``[{"prompt_token_ids": [...]}, ...]`` and one SamplingParams each -> answers in the same order."""


@dataclass(frozen=True, slots=True)
class ThroughputResult:
    """Totals of one run."""

    elapsed_s: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int

    def lines(self) -> list[str]:
        """VLLM's lines."""
        total = self.num_prompt_tokens + self.num_output_tokens
        return [
            f"Throughput: {self.num_requests / self.elapsed_s:.2f} requests/s, "
            f"{total / self.elapsed_s:.2f} total tokens/s, "
            f"{self.num_output_tokens / self.elapsed_s:.2f} output tokens/s",
            f"Total num prompt tokens:  {self.num_prompt_tokens}",
            f"Total num output tokens:  {self.num_output_tokens}",
        ]

    def as_json(self) -> dict[str, Any]:
        """VLLM's keys."""
        total = self.num_prompt_tokens + self.num_output_tokens
        return {
            "elapsed_time": self.elapsed_s,
            "num_requests": self.num_requests,
            "total_num_tokens": total,
            "requests_per_second": self.num_requests / self.elapsed_s,
            "tokens_per_second": total / self.elapsed_s,
            "output_tokens_per_second": self.num_output_tokens / self.elapsed_s,
        }


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """Seconds of each iteration over one fixed batch."""

    latencies_s: tuple[float, ...]

    def percentile_s(self, percentile: float) -> float:
        """Linear interpolation."""
        return float(np.percentile(self.latencies_s, percentile))

    def lines(self) -> list[str]:
        """VLLM's lines."""
        mean_s = float(np.mean(self.latencies_s))
        return [
            f"Avg latency: {mean_s} seconds",
            *(f"{p}% percentile latency: {self.percentile_s(p)} seconds" for p in LATENCY_PERCENTILES),
        ]

    def as_json(self) -> dict[str, Any]:
        """VLLM's keys."""
        return {
            "avg_latency": float(np.mean(self.latencies_s)),
            "latencies": list(self.latencies_s),
            "percentiles": {str(p): self.percentile_s(p) for p in LATENCY_PERCENTILES},
        }


def _inputs(samples: Sequence[PromptSample], seed: int) -> tuple[list[Prompt], list[SamplingParams]]:
    prompts = [{"prompt_token_ids": list(sample.prompt_ids)} for sample in samples]
    params = [
        SamplingParams(max_tokens=sample.max_output_tokens, ignore_eos=True, seed=seed + place)
        for place, sample in enumerate(samples)
    ]
    return prompts, params


def measure_throughput(
    generate: Generate, samples: Sequence[PromptSample], seed: int = 0
) -> ThroughputResult:
    """All samples at once; end of sequence is ignored so that every answer has its full length."""
    prompts, params = _inputs(samples, seed)
    start_s = time.perf_counter()
    answers = generate(prompts, params)
    elapsed_s = time.perf_counter() - start_s
    return ThroughputResult(
        elapsed_s=elapsed_s,
        num_requests=len(answers),
        num_prompt_tokens=sum(len(answer.prompt_token_ids or ()) for answer in answers),
        num_output_tokens=sum(len(choice.token_ids) for answer in answers for choice in answer.outputs),
    )


def measure_latency(
    generate: Generate,
    samples: Sequence[PromptSample],
    *,
    num_warmup: int = 10,
    num_iters: int = 30,
    seed: int = 0,
) -> LatencyResult:
    """The same batch again and again."""
    prompts, params = _inputs(samples, seed)
    latencies: list[float] = []
    for place in range(num_warmup + num_iters):
        start_s = time.perf_counter()
        generate(prompts, params)
        if place >= num_warmup:
            latencies.append(time.perf_counter() - start_s)
    return LatencyResult(tuple(latencies))
