"""`bench serve`: builds the dataset, drives an OpenAI endpoint with it, reports.

The prompts are made before the clock starts. With a tokenizer their lengths are exact; without one they are
plain English words, their count an estimate, and the server's usage says how many tokens they were.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from xllm.base.model_files import DEMO_NAME, find_model_dir
from xllm.bench.load import RequestRecord, RequestSpec, run_load, send
from xllm.bench.metrics import METRIC_NAMES, compute_metrics, parse_goodput
from xllm.bench.openai_client import OpenAIClient
from xllm.bench.report import detailed_json, format_block, result_json, result_path, save_json
from xllm.errors import ConfigError, DeadlineExceeded, InstanceError
from xllm.text.tokenizer import Tokenizer
from xllm.workload.arrivals import build_arrivals
from xllm.workload.datasets import (
    PrefixRepetitionDataset,
    RandomDataset,
    ShareGptDataset,
    build_plain_random,
)
from xllm.workload.lengths import Fixed, Uniform
from xllm.workload.prompt import PromptSample

Backend = Literal["openai", "openai-chat"]
_DEFAULT_ENDPOINT: Mapping[Backend, str] = {
    "openai": "/v1/completions",
    "openai-chat": "/v1/chat/completions",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """Which prompts; the names are vLLM's."""

    dataset_name: Literal["random", "sharegpt", "prefix_repetition"] = "random"
    dataset_path: str | None = None
    num_prompts: int = 1000
    seed: int = 0
    random_input_len: int = 1024
    random_output_len: int = 128
    random_range_ratio: float = 0.0
    random_prefix_len: int = 0
    sharegpt_output_len: int | None = None
    prefix_repetition_prefix_len: int = 256
    prefix_repetition_suffix_len: int = 256
    prefix_repetition_num_prefixes: int = 10
    prefix_repetition_output_len: int = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeBenchOptions:
    """Everything `bench serve` takes."""

    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    backend: Backend = "openai"
    base_url: str = "http://127.0.0.1:8000"
    endpoint: str | None = None
    model: str | None = None
    tokenizer: str | None = None
    api_key: str | None = None
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ignore_eos: bool = False
    temperature: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    num_warmups: int = 0
    goodput: Sequence[str] = ()
    percentile_metrics: Sequence[str] = ("ttft", "tpot", "itl")
    metric_percentiles: Sequence[float] = (99.0,)
    label: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    save_result: bool = False
    save_detailed: bool = False
    result_dir: str | None = None
    result_filename: str | None = None
    request_timeout_s: float = 6 * 3600.0
    ready_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.percentile_metrics if name not in METRIC_NAMES]
        if unknown:
            raise ConfigError(f"--percentile-metrics {unknown[0]!r}", hint=f"use {', '.join(METRIC_NAMES)}")
        if not all(0 < percentile < 100 for percentile in self.metric_percentiles):
            raise ConfigError(
                f"--metric-percentiles {list(self.metric_percentiles)}", hint="use numbers between 0 and 100"
            )
        if self.dataset.num_prompts < 1 or (self.max_concurrency is not None and self.max_concurrency < 1):
            raise ConfigError("--num-prompts and --max-concurrency must be at least 1")
        if not self.request_rate > 0:
            raise ConfigError(f"--request-rate {self.request_rate}", hint="use requests per second, or inf")

    @property
    def path(self) -> str:
        """The endpoint requests go to."""
        return self.endpoint or _DEFAULT_ENDPOINT[self.backend]


def load_tokenizer(model: str, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a directory, a hub id (its small files are fetched) or the demo model."""
    return Tokenizer.from_dir(find_model_dir(model, revision=revision, with_weights=False))


def _find_tokenizer(options: ServeBenchOptions, entry: Mapping[str, Any]) -> Tokenizer | None:
    """--tokenizer, else the local directory (or the demo model) that --model or the server's `root` names."""
    if options.tokenizer:
        return load_tokenizer(options.tokenizer)
    for place in (options.model, entry.get("root")):
        if place == DEMO_NAME or (place and (Path(str(place)) / "tokenizer.json").is_file()):
            return load_tokenizer(str(place))
    return None


def build_samples(options: DatasetOptions, tokenizer: Tokenizer | None) -> list[PromptSample]:
    """The prompts of a run.

    Raises ConfigError when the dataset cannot be made without a tokenizer or file.
    """
    num, seed = options.num_prompts, options.seed
    if options.dataset_name == "random":
        dataset = RandomDataset(
            Uniform.around(options.random_input_len, options.random_range_ratio),
            Uniform.around(options.random_output_len, options.random_range_ratio),
            options.random_prefix_len,
        )
        if tokenizer is None:
            return build_plain_random(dataset, num, seed)
        return dataset.build(num, seed, tokenizer)
    if tokenizer is None:
        raise ConfigError(
            f"dataset {options.dataset_name} needs a tokenizer to measure lengths",
            hint="pass --tokenizer with the model's directory or Hugging Face id",
        )
    if options.dataset_name == "prefix_repetition":
        repeated = PrefixRepetitionDataset(
            options.prefix_repetition_prefix_len,
            options.prefix_repetition_suffix_len,
            options.prefix_repetition_num_prefixes,
            Fixed(options.prefix_repetition_output_len),
        )
        return repeated.build(num, seed, tokenizer)
    if not options.dataset_path:
        raise ConfigError("dataset sharegpt needs its file", hint="pass --dataset-path FILE.json")
    return ShareGptDataset(Path(options.dataset_path), options.sharegpt_output_len).build(
        num, seed, tokenizer
    )


def build_spec(options: ServeBenchOptions, model: str, sample: PromptSample) -> RequestSpec:
    """The request for one sample; ``extra_body`` wins over everything but ``stream``."""
    body: dict[str, Any] = {"model": model, "temperature": options.temperature}
    if options.backend == "openai-chat":
        body["messages"] = [{"role": "user", "content": sample.text or ""}]
        body["max_completion_tokens"] = sample.max_output_tokens
    else:
        body["prompt"] = sample.text if sample.text is not None else list(sample.prompt_ids)
        body["max_tokens"] = sample.max_output_tokens
    if options.ignore_eos:
        body["ignore_eos"] = True
    body.update(options.extra_body)
    body.update(stream=True, stream_options={"include_usage": True})
    known_length = sample.num_prompt_tokens if sample.prompt_ids else 0
    return RequestSpec(options.path, body, known_length)


async def wait_until_answering(client: OpenAIClient, timeout_s: float) -> None:
    """Wait for /v1/models to answer at all; raises DeadlineExceeded."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while await client.get_status("/v1/models") is None:
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(
                f"{client.base_url} did not answer within {timeout_s:g} s",
                hint="start the server, or pass --base-url / --host / --port",
            )
        await asyncio.sleep(0.5)


def _progress(total: int, stream: TextIO) -> Callable[[RequestRecord], None]:
    """One line that counts up, on a terminal only."""
    done = 0

    def show(record: RequestRecord) -> None:
        nonlocal done
        done += 1
        if stream.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done}/{total} requests", end=end, file=stream, flush=True)

    return show


async def run_serve_bench(
    options: ServeBenchOptions, *, out: TextIO | None = None, notes: TextIO | None = None
) -> dict[str, Any]:
    """Run, print the block to ``out`` (stdout) and return the result JSON (saved when asked)."""
    out, notes = out or sys.stdout, notes or sys.stderr
    goodput_ms = parse_goodput(options.goodput)
    model, records, duration_s = await _measure(options, notes)
    metrics = compute_metrics(
        records, duration_s, percentiles=options.metric_percentiles, goodput_ms=goodput_ms
    )
    block = format_block(
        metrics,
        request_rate=options.request_rate,
        max_concurrency=options.max_concurrency,
        shown=options.percentile_metrics,
    )
    print(block, file=out, flush=True)
    for error in sorted({record.error for record in records if record.error})[:5]:
        print(f"failed: {error}", file=notes)
    now = datetime.now()
    result = _describe(options, model, now) | result_json(metrics, options.percentile_metrics)
    if options.save_detailed:
        result |= detailed_json(records)
    if options.save_result or options.save_detailed:
        path = result_path(
            options.result_dir,
            options.result_filename,
            backend=options.backend,
            rate=options.request_rate,
            limit=options.max_concurrency,
            model=model,
            now=now,
        )
        save_json(path, result)
        print(f"saved {path}", file=notes)
    return result


async def _measure(options: ServeBenchOptions, notes: TextIO) -> tuple[str, list[RequestRecord], float]:
    """Prepare everything, then send; returns the model's name, the records and the seconds it took."""
    async with OpenAIClient(
        options.base_url, api_key=options.api_key, timeout_s=options.request_timeout_s
    ) as client:
        await wait_until_answering(client, options.ready_timeout_s)
        entry = {} if options.model and options.tokenizer else await client.first_model()
        model = options.model or str(entry["id"])
        tokenizer = _find_tokenizer(options, entry)
        if tokenizer is None:
            print(
                "no tokenizer found: prompt lengths are word counts (--tokenizer makes them exact)",
                file=notes,
            )
        samples = await asyncio.to_thread(build_samples, options.dataset, tokenizer)
        specs = [build_spec(options, model, sample) for sample in samples]
        await _warm_up(client, specs[0], options)
        arrivals = build_arrivals(options.request_rate, options.burstiness)
        records, duration_s = await run_load(
            client,
            specs,
            arrivals.times_s(len(specs), options.dataset.seed),
            max_concurrency=options.max_concurrency,
            on_done=_progress(len(specs), notes),
        )
    return model, records, duration_s


async def _warm_up(client: OpenAIClient, spec: RequestSpec, options: ServeBenchOptions) -> None:
    gate = asyncio.Semaphore(options.max_concurrency or max(1, options.num_warmups))

    async def one() -> RequestRecord:
        async with gate:
            return await send(client, spec)

    for record in await asyncio.gather(*(one() for _ in range(options.num_warmups))):
        if not record.is_success:
            raise InstanceError(f"the warm-up request failed: {record.error}")


def _describe(options: ServeBenchOptions, model: str, now: datetime) -> dict[str, Any]:
    """What was run, with vLLM's keys."""
    return {
        "date": f"{now:%Y%m%d-%H%M%S}",
        "endpoint_type": options.backend,
        "backend": options.backend,
        "label": options.label,
        "model_id": model,
        "tokenizer_id": options.tokenizer or model,
        "num_prompts": options.dataset.num_prompts,
        **options.metadata,
        "dataset_name": options.dataset.dataset_name,
        "seed": options.dataset.seed,
        "request_rate": options.request_rate if math.isfinite(options.request_rate) else "inf",
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
    }
