from __future__ import annotations

from dataclasses import dataclass

from xllm.bench.offline import Prompt, measure_latency, measure_throughput
from xllm.types.sampling import SamplingParams
from xllm.workload.datasets import RandomDataset
from xllm.workload.lengths import Fixed


@dataclass
class Choice:
    token_ids: list[int]


@dataclass
class Output:
    prompt_token_ids: list[int]
    outputs: list[Choice]


class Engine:
    def __init__(self) -> None:
        self.calls: list[list[SamplingParams]] = []

    def __call__(self, prompts: list[Prompt], params: list[SamplingParams]) -> list[Output]:
        self.calls.append(params)
        return [
            Output(prompt["prompt_token_ids"], [Choice([7] * (param.max_tokens or 0))])
            for prompt, param in zip(prompts, params, strict=True)
        ]


SAMPLES = RandomDataset(Fixed(10), Fixed(4)).build(6, seed=0, vocab_size=100)


def test_throughput_counts_tokens_and_prints_vllms_lines() -> None:
    engine = Engine()
    result = measure_throughput(engine, SAMPLES, seed=5)
    assert (result.num_requests, result.num_prompt_tokens, result.num_output_tokens) == (6, 60, 24)
    assert result.lines()[0].startswith("Throughput: ") and "total tokens/s" in result.lines()[0]
    assert result.lines()[1:] == ["Total num prompt tokens:  60", "Total num output tokens:  24"]
    assert result.as_json()["total_num_tokens"] == 84
    assert all(p.ignore_eos and p.max_tokens == 4 for p in engine.calls[0])
    assert [p.seed for p in engine.calls[0]] == [5, 6, 7, 8, 9, 10]


def test_latency_leaves_out_the_warm_up() -> None:
    engine = Engine()
    result = measure_latency(engine, SAMPLES, num_warmup=2, num_iters=3)
    assert len(engine.calls) == 5 and len(result.latencies_s) == 3
    assert result.lines()[0].startswith("Avg latency: ") and result.lines()[3].startswith(
        "50% percentile latency: "
    )
    assert set(result.as_json()["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
