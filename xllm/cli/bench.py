"""xllm bench serve | throughput | latency | startup | step.

`serve` and `startup` measure a server over HTTP; `throughput` and `latency` measure an engine in this
process's own `xllm.LLM`, with the engine's flags as `xllm serve` has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xllm.bench.environment import describe
from xllm.bench.offline import Generate, measure_latency, measure_throughput
from xllm.bench.report import save_json
from xllm.bench.serve import (
    DatasetOptions,
    ServeBenchOptions,
    build_samples,
    load_tokenizer,
    run_serve_bench,
)
from xllm.bench.startup import format_startup, free_port, measure_startup
from xllm.cli.flags import add_config_flags, load_from_flags, print_config
from xllm.config.load import Loaded, Schema
from xllm.config.serve import ENGINE_SECTIONS
from xllm.errors import ConfigError

_START_SERVER = "import sys; from xllm.cli.main import main; sys.exit(main())"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand per benchmark."""
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    serve = commands.add_parser(
        "serve", help="a running OpenAI server", description="Measure an OpenAI server."
    )
    _add_target(serve)
    _add_dataset(serve, num_prompts=1000)
    _add_load(serve)
    _add_result(serve)
    throughput = commands.add_parser(
        "throughput", help="an engine, all prompts at once", description="Measure an engine without a server."
    )
    add_config_flags(throughput, ENGINE_SECTIONS)
    _add_dataset(throughput, num_prompts=1000, with_seed=False)
    throughput.add_argument("--output-json", metavar="FILE", help="also write the result as JSON")
    latency = commands.add_parser(
        "latency", help="an engine, one fixed batch", description="Measure the latency of one batch."
    )
    add_config_flags(latency, ENGINE_SECTIONS)
    _add_latency(latency)
    step = commands.add_parser(
        "step",
        help="what a decode step costs beside the model",
        description="Split decode steps into forward, sampling and everything else.",
    )
    add_config_flags(step, ENGINE_SECTIONS)
    step.add_argument("--shape", help="in place of MODEL, with --load-format dummy: tiny or qwen3-0.6b")
    step.add_argument("--num-seqs", type=int, nargs="+", default=[1, 64], help="sequences at once [1 64]")
    step.add_argument("--input-len", type=int, default=32, help="prompt tokens each [32]")
    step.add_argument("--num-steps", type=int, default=100, help="decode steps measured [100]")
    step.add_argument("--temperature", type=float, default=0.8, help="of sampling [0.8]")
    step.add_argument("--output-json", metavar="FILE", help="also write the result as JSON")
    startup = commands.add_parser(
        "startup",
        help="from process start to the first token",
        description="Start `xllm serve` and measure until its first token. Flags for it come after `--`.",
    )
    startup.add_argument("--num-runs", type=int, default=1, help="starts, one after the other [1]")
    startup.add_argument("--timeout", type=float, default=600.0, help="seconds allowed for one start [600]")
    startup.add_argument("--output-json", metavar="FILE", help="also write the result as JSON")
    startup.add_argument(
        "serve_args", nargs="*", metavar="-- SERVE_ARGS", help="MODEL and flags of `xllm serve`"
    )


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark; 1 when nothing succeeded."""
    commands = {
        "serve": _serve,
        "throughput": _throughput,
        "latency": _latency,
        "startup": _startup,
        "step": _step,
    }
    return commands[args.benchmark](args)


# -- flags


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--backend", choices=("openai", "openai-chat"), default="openai")
    group.add_argument("--base-url", help="server root, in place of --host and --port")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--endpoint", help="path; default: the backend's own")
    group.add_argument("--model", help="name to ask for; default: the first the server lists")
    group.add_argument("--tokenizer", help="directory or hub id; default: the model's, when it is local")
    group.add_argument("--api-key", help="default: $OPENAI_API_KEY, $XLLM_API_KEY")
    group.add_argument("--ready-check-timeout-sec", type=float, default=60.0, help="wait for the server [60]")
    group.add_argument(
        "--request-timeout", type=float, default=6 * 3600.0, help="seconds per request [21600]"
    )


def _add_dataset(parser: argparse.ArgumentParser, *, num_prompts: int, with_seed: bool = True) -> None:
    group = parser.add_argument_group("dataset")
    group.add_argument(
        "--dataset-name", choices=("random", "sharegpt", "prefix_repetition"), default="random"
    )
    group.add_argument("--dataset-path", metavar="FILE", help="the ShareGPT JSON file")
    group.add_argument("--num-prompts", type=int, default=num_prompts, help=f"[{num_prompts}]")
    if with_seed:
        group.add_argument("--seed", type=int, default=0, help="of prompts, lengths and arrivals [0]")
    group.add_argument("--random-input-len", "--input-len", type=int, default=1024, help="tokens [1024]")
    group.add_argument("--random-output-len", "--output-len", type=int, default=128, help="tokens [128]")
    group.add_argument("--random-range-ratio", type=float, default=0.0, help="lengths vary by this share [0]")
    group.add_argument("--random-prefix-len", type=int, default=0, help="tokens shared by all prompts [0]")
    group.add_argument("--sharegpt-output-len", type=int, help="in place of the recorded answers' lengths")
    group.add_argument("--prefix-repetition-prefix-len", type=int, default=256, help="tokens [256]")
    group.add_argument("--prefix-repetition-suffix-len", type=int, default=256, help="tokens [256]")
    group.add_argument("--prefix-repetition-num-prefixes", type=int, default=10, help="[10]")
    group.add_argument("--prefix-repetition-output-len", type=int, default=128, help="tokens [128]")


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument("--request-rate", type=float, default=float("inf"), help="requests per second [inf]")
    group.add_argument("--burstiness", type=float, default=1.0, help="1 = Poisson, below 1 = burstier [1]")
    group.add_argument("--max-concurrency", type=int, help="requests in flight at most")
    group.add_argument("--num-warmups", type=int, default=0, help="requests before the clock starts [0]")
    group.add_argument("--ignore-eos", action="store_true", help="answers have exactly the asked length")
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument(
        "--extra-body", type=_json_object, default={}, metavar="JSON", help="more request fields"
    )


def _add_result(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("result")
    group.add_argument(
        "--goodput", nargs="+", default=(), metavar="METRIC:MS", help="ttft:200 tpot:50 e2el:9000"
    )
    group.add_argument("--percentile-metrics", type=_words, default=("ttft", "tpot", "itl"), metavar="A,B")
    group.add_argument("--metric-percentiles", type=_numbers, default=(99.0,), metavar="P,Q")
    group.add_argument("--save-result", action="store_true", help="write the result JSON")
    group.add_argument("--save-detailed", action="store_true", help="write it with every request's times")
    group.add_argument("--result-dir")
    group.add_argument("--result-filename")
    group.add_argument("--label", help="kept in the result JSON")
    group.add_argument(
        "--metadata", nargs="*", default=(), metavar="KEY=VALUE", help="kept in the result JSON"
    )


def _add_latency(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch")
    group.add_argument("--input-len", type=int, default=32)
    group.add_argument("--output-len", type=int, default=128)
    group.add_argument("--batch-size", type=int, default=8)
    group.add_argument("--num-iters-warmup", type=int, default=10)
    group.add_argument("--num-iters", type=int, default=30)
    group.add_argument("--output-json", metavar="FILE", help="also write the result as JSON")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _pairs(words: Sequence[str]) -> dict[str, str]:
    for word in words:
        if "=" not in word:
            raise ConfigError(f"--metadata {word!r}", hint="write KEY=VALUE")
    return dict(word.split("=", 1) for word in words)


# -- commands


def _dataset_options(args: argparse.Namespace, seed: int) -> DatasetOptions:
    return DatasetOptions(
        dataset_name=args.dataset_name,
        dataset_path=args.dataset_path,
        num_prompts=args.num_prompts,
        seed=seed,
        random_input_len=args.random_input_len,
        random_output_len=args.random_output_len,
        random_range_ratio=args.random_range_ratio,
        random_prefix_len=args.random_prefix_len,
        sharegpt_output_len=args.sharegpt_output_len,
        prefix_repetition_prefix_len=args.prefix_repetition_prefix_len,
        prefix_repetition_suffix_len=args.prefix_repetition_suffix_len,
        prefix_repetition_num_prefixes=args.prefix_repetition_num_prefixes,
        prefix_repetition_output_len=args.prefix_repetition_output_len,
    )


def _serve(args: argparse.Namespace) -> int:
    environ: Mapping[str, str] = os.environ
    options = ServeBenchOptions(
        dataset=_dataset_options(args, args.seed),
        backend=args.backend,
        base_url=args.base_url or f"http://{args.host}:{args.port}",
        endpoint=args.endpoint,
        model=args.model,
        tokenizer=args.tokenizer,
        api_key=args.api_key or environ.get("OPENAI_API_KEY") or environ.get("XLLM_API_KEY"),
        request_rate=args.request_rate,
        burstiness=args.burstiness,
        max_concurrency=args.max_concurrency,
        ignore_eos=args.ignore_eos,
        temperature=args.temperature,
        extra_body=args.extra_body,
        num_warmups=args.num_warmups,
        goodput=tuple(args.goodput),
        percentile_metrics=args.percentile_metrics,
        metric_percentiles=args.metric_percentiles,
        label=args.label,
        metadata=_pairs(args.metadata),
        save_result=args.save_result,
        save_detailed=args.save_detailed,
        result_dir=args.result_dir,
        result_filename=args.result_filename,
        request_timeout_s=args.request_timeout,
        ready_timeout_s=args.ready_check_timeout_sec,
    )
    result = asyncio.run(run_serve_bench(options))
    return 0 if result["completed"] else 1


def engine_arguments(loaded: Loaded) -> dict[str, Any]:
    """Keyword arguments of `xllm.LLM` for everything that was said, by flag, environment or file."""
    arguments: dict[str, Any] = {}
    for option in Schema(ENGINE_SECTIONS).options:
        if option.key in loaded.sources:
            name = option.flag.removeprefix("--").replace("-", "_") or option.key
            arguments[name] = getattr(loaded.sections[option.section], option.name)
    return arguments


@contextmanager
def _engine(loaded: Loaded) -> Iterator[Generate]:
    """An `xllm.LLM` as a function; its engine process ends with the block."""
    from xllm import LLM

    llm = LLM(**engine_arguments(loaded))
    try:
        yield lambda prompts, params: llm.generate(prompts, params)
    finally:
        llm.close()


def _throughput(args: argparse.Namespace) -> int:
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    model = loaded.sections["model"]
    options = _dataset_options(args, model.seed)
    samples = build_samples(options, load_tokenizer(model.tokenizer or model.model, model.revision))
    with _engine(loaded) as generate:
        result = measure_throughput(generate, samples, model.seed)
    print("\n".join(result.lines()))
    _save(args.output_json, result.as_json())
    return 0


def _latency(args: argparse.Namespace) -> int:
    loaded = load_from_flags(args)
    if args.print_config:
        print_config(loaded, args.print_config)
        return 0
    model = loaded.sections["model"]
    if min(args.batch_size, args.num_iters) < 1 or args.num_iters_warmup < 0:
        raise ConfigError("--batch-size and --num-iters must be at least 1, --num-iters-warmup at least 0")
    options = DatasetOptions(
        num_prompts=args.batch_size,
        seed=model.seed,
        random_input_len=args.input_len,
        random_output_len=args.output_len,
    )
    samples = build_samples(options, load_tokenizer(model.tokenizer or model.model, model.revision))
    with _engine(loaded) as generate:
        result = measure_latency(
            generate, samples, num_warmup=args.num_iters_warmup, num_iters=args.num_iters, seed=model.seed
        )
    print("\n".join(result.lines()))
    _save(args.output_json, result.as_json())
    return 0


def _step(args: argparse.Namespace) -> int:
    from xllm.bench.step import format_steps, measure_steps, write_shape

    if min(*args.num_seqs, args.input_len, args.num_steps) < 1:
        raise ConfigError("--num-seqs, --input-len and --num-steps must be at least 1")
    loaded = load_from_flags(args)
    config = loaded.engine()
    if config.scheduler.max_num_seqs is None:
        config = replace(config, scheduler=replace(config.scheduler, max_num_seqs=max(args.num_seqs)))
    with tempfile.TemporaryDirectory() as folder:
        if args.shape is not None:
            _check_shape(args.shape, loaded)
            write_shape(args.shape, Path(folder))
            config = replace(config, model=replace(config.model, model=folder))
        costs = measure_steps(
            config,
            args.num_seqs,
            input_len=args.input_len,
            num_steps=args.num_steps,
            seed=config.model.seed,
            temperature=args.temperature,
        )
    print(format_steps(costs))
    model = args.shape or config.model.model
    _save(args.output_json, {"model": model, "steps": [asdict(cost) for cost in costs]})
    return 0


def _check_shape(shape: str, loaded: Loaded) -> None:
    from xllm.bench.step import SHAPES

    if shape not in SHAPES:
        raise ConfigError(f"--shape {shape!r} is not known", hint="one of " + ", ".join(SHAPES))
    if loaded.sections["model"].load_format != "dummy" or "model.model" in loaded.sources:
        raise ConfigError("--shape has no weights", hint="add --load-format dummy and give no MODEL")


def _startup(args: argparse.Namespace) -> int:
    if args.num_runs < 1:
        raise ConfigError(f"--num-runs is {args.num_runs}", hint="use at least 1")
    results = []
    for _ in range(args.num_runs):
        port = free_port()
        place = ["--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-c", _START_SERVER, "serve", *args.serve_args, *place]
        results.append(
            asyncio.run(measure_startup(command, f"http://127.0.0.1:{port}", timeout_s=args.timeout))
        )
    print(format_startup(results))
    _save(args.output_json, {"runs": [result.as_json() for result in results]})
    return 0


def _save(file: str | None, content: Mapping[str, Any]) -> None:
    if file is not None:
        save_json(Path(file), {"environment": describe(), **content})
