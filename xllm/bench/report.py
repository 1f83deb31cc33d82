"""The report of `bench serve`: vLLM's console block (tools parse its labels) and its result JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from xllm.bench.load import RequestRecord
from xllm.bench.metrics import ServingMetrics
from xllm.errors import ConfigError, boundary

_WIDTH = 50
_HEADERS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


def _line(label: str, value: float | int) -> str:
    text = f"{value:<10.2f}" if isinstance(value, float) else f"{value:<10}"
    return f"{label:<40} {text}"


def _percentile_name(percentile: float) -> str:
    return str(int(percentile)) if percentile == int(percentile) else str(percentile)


def format_block(
    metrics: ServingMetrics,
    *,
    request_rate: float = math.inf,
    max_concurrency: int | None = None,
    shown: Sequence[str] = ("ttft", "tpot", "itl"),
) -> str:
    """The whole console block, without a final newline."""
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}"]
    lines.append(_line("Successful requests:", metrics.completed))
    lines.append(_line("Failed requests:", metrics.failed))
    if max_concurrency is not None:
        lines.append(_line("Maximum request concurrency:", max_concurrency))
    if math.isfinite(request_rate):
        lines.append(_line("Request rate configured (RPS):", float(request_rate)))
    lines.append(_line("Benchmark duration (s):", metrics.duration_s))
    lines.append(_line("Total input tokens:", metrics.total_input_tokens))
    lines.append(_line("Total generated tokens:", metrics.total_output_tokens))
    lines.append(_line("Request throughput (req/s):", metrics.request_throughput))
    if metrics.request_goodput is not None:
        lines.append(_line("Request goodput (req/s):", metrics.request_goodput))
    lines.append(_line("Output token throughput (tok/s):", metrics.output_throughput))
    lines.append(_line("Peak output token throughput (tok/s):", metrics.max_output_tokens_per_s))
    lines.append(_line("Peak concurrent requests:", float(metrics.max_concurrent_requests)))
    lines.append(_line("Total token throughput (tok/s):", metrics.total_token_throughput))
    for name in shown:
        found = metrics.distributions[name]
        label = name.upper()
        lines.append(f"{_HEADERS[name]:-^{_WIDTH}}")
        lines.append(_line(f"Mean {label} (ms):", found.mean_ms))
        lines.append(_line(f"Median {label} (ms):", found.median_ms))
        for percentile, value in found.percentiles_ms:
            lines.append(_line(f"P{_percentile_name(percentile)} {label} (ms):", value))
    lines.append("=" * _WIDTH)
    return "\n".join(lines)


def result_json(metrics: ServingMetrics, shown: Sequence[str]) -> dict[str, Any]:
    """The measured part of the result file, with vLLM's keys."""
    result: dict[str, Any] = {
        "duration": metrics.duration_s,
        "completed": metrics.completed,
        "failed": metrics.failed,
        "total_input_tokens": metrics.total_input_tokens,
        "total_output_tokens": metrics.total_output_tokens,
        "total_cached_tokens": metrics.total_cached_tokens,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.request_goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_token_throughput,
        "max_output_tokens_per_s": metrics.max_output_tokens_per_s,
        "max_concurrent_requests": metrics.max_concurrent_requests,
    }
    for name in shown:
        found = metrics.distributions[name]
        result[f"mean_{name}_ms"] = found.mean_ms
        result[f"median_{name}_ms"] = found.median_ms
        result[f"std_{name}_ms"] = found.std_ms
        for percentile, value in found.percentiles_ms:
            result[f"p{_percentile_name(percentile)}_{name}_ms"] = value
    return result


def detailed_json(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Per-request lists, in sending order (--save-detailed)."""
    return {
        "input_lens": [record.num_prompt_tokens for record in records],
        "output_lens": [record.num_output_tokens for record in records],
        "cached_lens": [record.num_cached_tokens for record in records],
        "start_times": [record.started_s for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [list(record.itl_s) for record in records],
        "latencies": [record.latency_s for record in records],
        "generated_texts": [record.text for record in records],
        "errors": [record.error or "" for record in records],
    }


def result_path(
    folder: str | None,
    name: str | None,
    *,
    backend: str,
    rate: float,
    limit: int | None,
    model: str,
    now: datetime,
) -> Path:
    """``--result-filename``, or backend, rate, concurrency, model and time joined as vLLM names its files."""
    if name is None:
        concurrency = f"-concurrency{limit}" if limit is not None else ""
        stem = model.rstrip("/").split("/")[-1]
        name = f"{backend}-{rate}qps{concurrency}-{stem}-{now:%Y%m%d-%H%M%S}.json"
    return Path(folder) / name if folder else Path(name)


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file, making its folder."""
    with boundary(ConfigError, f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
