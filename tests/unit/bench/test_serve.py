from __future__ import annotations

import asyncio
import io
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.openai_server import FakeOpenAI, running
from tests.fakes.small_tokenizers import small_tokenizer, write_tokenizer_dir
from xllm.bench.load import RequestSpec, run_load
from xllm.bench.openai_client import OpenAIClient
from xllm.bench.serve import DatasetOptions, ServeBenchOptions, run_serve_bench
from xllm.errors import ConfigError, DeadlineExceeded, InstanceError


def bench(fake: FakeOpenAI, **options: Any) -> tuple[dict[str, Any], str, str]:
    async def main() -> tuple[dict[str, Any], str, str]:
        async with running(fake):
            out, notes = io.StringIO(), io.StringIO()
            result = await run_serve_bench(
                ServeBenchOptions(base_url=fake.url, **options), out=out, notes=notes
            )
            return result, out.getvalue(), notes.getvalue()

    return asyncio.run(main())


def small(**options: Any) -> DatasetOptions:
    return DatasetOptions(**{"num_prompts": 12, "random_input_len": 20, "random_output_len": 3, **options})


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_a_run_counts_every_request_and_token(backend: Any) -> None:
    fake = FakeOpenAI()
    result, out, notes = bench(fake, dataset=small(), backend=backend, max_concurrency=4)
    assert (result["completed"], result["failed"]) == (12, 0)
    assert result["total_output_tokens"] == 36 and result["total_cached_tokens"] == 36
    assert result["total_input_tokens"] == 120  # no tokenizer: the server's usage
    assert result["mean_ttft_ms"] > 0 and result["p99_itl_ms"] > 0
    assert fake.max_running <= 4
    assert out.startswith("============ Serving Benchmark Result") and "no tokenizer" in notes
    assert {len(json.dumps(body)) > 0 and body["model"] for body in fake.bodies} == {"fake-model"}
    assert ("messages" in fake.bodies[0]) == (backend == "openai-chat")


def test_with_a_tokenizer_prompts_have_the_asked_length(tmp_path: Path) -> None:
    root = str(write_tokenizer_dir(tmp_path / "model"))
    fake = FakeOpenAI(root=root)
    result, _, notes = bench(fake, dataset=small(random_prefix_len=5), ignore_eos=True)
    assert result["total_input_tokens"] == 12 * 25 and "no tokenizer" not in notes
    tokenizer = small_tokenizer("byte_level")
    assert {len(tokenizer.encode(body["prompt"])) for body in fake.bodies} == {25}
    assert all(body["ignore_eos"] is True and body["max_tokens"] == 3 for body in fake.bodies)


def test_prefix_repetition_and_sharegpt_reach_the_server(tmp_path: Path) -> None:
    tokenizer = str(write_tokenizer_dir(tmp_path / "model"))
    options = small(
        dataset_name="prefix_repetition",
        prefix_repetition_prefix_len=16,
        prefix_repetition_suffix_len=8,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_output_len=2,
    )
    fake = FakeOpenAI()
    result, _, _ = bench(fake, dataset=options, tokenizer=tokenizer)
    assert result["total_output_tokens"] == 24 and result["total_input_tokens"] == 12 * 24
    assert sorted(Counter(body["prompt"][:12] for body in fake.bodies).values()) == [4, 4, 4]
    path = tmp_path / "s.json"
    turn = [{"from": "human", "value": "Tell me about Paris."}, {"from": "gpt", "value": "Paris is large."}]
    path.write_text(json.dumps([{"conversations": turn}]))
    fake = FakeOpenAI()
    bench(
        fake,
        dataset=small(dataset_name="sharegpt", dataset_path=str(path), num_prompts=2),
        tokenizer=tokenizer,
    )
    assert [body["prompt"] for body in fake.bodies] == ["Tell me about Paris."] * 2
    with pytest.raises(ConfigError, match="tokenizer"):
        bench(FakeOpenAI(), dataset=small(dataset_name="sharegpt", dataset_path=str(path)))


def test_results_are_saved_with_their_description(tmp_path: Path) -> None:
    result, _, _ = bench(
        FakeOpenAI(),
        dataset=small(num_prompts=3),
        request_rate=200.0,
        burstiness=0.5,
        num_warmups=2,
        goodput=["ttft:100000"],
        percentile_metrics=("ttft", "e2el"),
        metric_percentiles=(50, 90),
        save_result=True,
        save_detailed=True,
        result_dir=str(tmp_path / "new"),
        result_filename="r.json",
        label="mine",
        metadata={"host": "here"},
    )
    saved = json.loads((tmp_path / "new" / "r.json").read_text())
    assert saved == json.loads(json.dumps(result))
    assert saved["label"] == "mine" and saved["host"] == "here" and saved["request_rate"] == 200.0
    assert saved["request_goodput"] == saved["request_throughput"] > 0
    assert "p90_e2el_ms" in saved and "mean_itl_ms" not in saved and len(saved["ttfts"]) == 3


def test_failures_are_counted_and_shown() -> None:
    fake = FakeOpenAI()
    result, out, notes = bench(fake, dataset=small(num_prompts=2), extra_body={"prompt": "FAIL-STREAM"})
    assert (result["completed"], result["failed"]) == (0, 2)
    assert "engine died" in notes and "Failed requests:                         2" in out
    assert all(body["stream"] is True for body in fake.bodies)
    with pytest.raises(InstanceError, match="warm-up"):
        bench(FakeOpenAI(), dataset=small(num_prompts=2), num_warmups=1, extra_body={"prompt": "FAIL-STATUS"})


def test_requests_are_sent_when_due_and_limited() -> None:
    async def main() -> None:
        async with running(FakeOpenAI(gap_s=0.02)) as fake, OpenAIClient(fake.url) as client:
            specs = [RequestSpec("/v1/completions", {"prompt": str(i)}, 1) for i in range(6)]
            due_s = [0.0, 0.0, 0.0, 0.3, 0.3, 0.3]
            begin_s = time.perf_counter()
            records, duration_s = await run_load(client, specs, due_s, max_concurrency=2)
            # Never early; being late is the machine's affair and not asserted.
            assert all(r.started_s - begin_s >= due - 0.01 for r, due in zip(records, due_s, strict=True))
            assert duration_s >= 0.3 and fake.max_running == 2
            assert all(len(r.itl_s) == 4 and r.ttft_s > 0 and r.tpot_s for r in records)
            assert {r.text for r in records} == {"Paris is the capital."}

    asyncio.run(main())


def test_the_role_of_a_chat_answer_is_not_its_first_token() -> None:
    async def main() -> None:
        async with running(FakeOpenAI(gap_s=0.05)) as fake, OpenAIClient(fake.url) as client:
            body = {"messages": [], "stream_options": {"include_usage": True}}
            records, _ = await run_load(client, [RequestSpec("/v1/chat/completions", body, 0)], [0.0])
            assert records[0].ttft_s >= 0.045 and records[0].num_output_tokens == 5
            assert records[0].text == "Paris is the capital." and records[0].finish_reason == "stop"

    asyncio.run(main())


def test_a_silent_address_ends_with_a_deadline() -> None:
    with pytest.raises(DeadlineExceeded, match="--base-url"):
        asyncio.run(run_serve_bench(ServeBenchOptions(base_url="http://127.0.0.1:9", ready_timeout_s=0.0)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"percentile_metrics": ("ttft", "speed")},
        {"metric_percentiles": (100,)},
        {"max_concurrency": 0},
        {"request_rate": 0.0},
        {"request_rate": math.nan},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServeBenchOptions(**wrong)
