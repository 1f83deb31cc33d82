from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xllm.bench.load import RequestRecord
from xllm.bench.metrics import compute_metrics, parse_goodput
from xllm.bench.report import detailed_json, format_block, result_json, result_path
from xllm.errors import ConfigError

RECORDS = [
    RequestRecord(0.0, 1.0, 0.2, (0.4, 0.4), 10, 3, 4, "abc", "stop"),
    RequestRecord(0.5, 1.5, 0.3, (0.6, 0.6), 20, 3, 8, "abc", "stop"),
    RequestRecord(2.0, 0.1, 0.1, (), 30, 1, None, "a", "length"),
    RequestRecord(2.5, 0.7, error="InstanceLost: gone"),
]

BLOCK = """\
============ Serving Benchmark Result ============
Successful requests:                     3         
Failed requests:                         1         
Maximum request concurrency:             8         
Request rate configured (RPS):           2.50      
Benchmark duration (s):                  4.00      
Total input tokens:                      60        
Total generated tokens:                  7         
Request throughput (req/s):              0.75      
Request goodput (req/s):                 0.50      
Output token throughput (tok/s):         1.75      
Peak output token throughput (tok/s):    3.00      
Peak concurrent requests:                2.00      
Total token throughput (tok/s):          16.75     
---------------Time to First Token----------------
Mean TTFT (ms):                          200.00    
Median TTFT (ms):                        200.00    
P50 TTFT (ms):                           200.00    
P99.9 TTFT (ms):                         299.80    
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          500.00    
Median TPOT (ms):                        500.00    
P50 TPOT (ms):                           500.00    
P99.9 TPOT (ms):                         599.80    
---------------Inter-token Latency----------------
Mean ITL (ms):                           500.00    
Median ITL (ms):                         500.00    
P50 ITL (ms):                            500.00    
P99.9 ITL (ms):                          600.00    
----------------End-to-end Latency----------------
Mean E2EL (ms):                          866.67    
Median E2EL (ms):                        1000.00   
P50 E2EL (ms):                           1000.00   
P99.9 E2EL (ms):                         1499.00   
=================================================="""


def test_the_console_block_is_the_one_tools_parse() -> None:
    metrics = compute_metrics(RECORDS, 4.0, percentiles=(50, 99.9), goodput_ms={"ttft": 250, "tpot": 450})
    shown = ("ttft", "tpot", "itl", "e2el")
    block = format_block(metrics, request_rate=2.5, max_concurrency=8, shown=shown)
    assert block == BLOCK
    unlimited = format_block(metrics)
    assert "Maximum request concurrency" not in unlimited and "Request rate configured" not in unlimited


def test_the_json_has_vllms_keys() -> None:
    result = result_json(compute_metrics(RECORDS, 4.0), ("ttft", "e2el"))
    names = (
        "duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput"
    )
    names += " output_throughput total_token_throughput max_output_tokens_per_s max_concurrent_requests"
    for name in (
        *names.split(),
        "mean_ttft_ms",
        "median_ttft_ms",
        "std_ttft_ms",
        "p99_ttft_ms",
        "p99_e2el_ms",
    ):
        assert name in result
    assert "mean_itl_ms" not in result
    assert result["request_goodput"] is None and result["total_cached_tokens"] == 12
    assert result["std_ttft_ms"] == pytest.approx(np.std([200, 300, 100]))
    detailed = detailed_json(RECORDS)
    assert detailed["output_lens"] == [3, 3, 1, 0] and detailed["errors"][3] == "InstanceLost: gone"


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 1), st.lists(st.floats(0, 2), max_size=5)), max_size=8)
)
def test_metrics_hold_together(rows: list[tuple[float, float, list[float]]]) -> None:
    records = [
        RequestRecord(start, ttft + sum(gaps), ttft, tuple(gaps), 5, 2 * (1 + len(gaps)))
        for start, ttft, gaps in rows
    ]
    metrics = compute_metrics(records, 10.0, goodput_ms={"e2el": math.inf})
    assert metrics.request_goodput == metrics.request_throughput == pytest.approx(len(rows) / 10)
    assert metrics.max_output_tokens_per_s <= metrics.total_output_tokens + 1e-6
    assert metrics.max_concurrent_requests <= len(rows)
    assert metrics.total_token_throughput == pytest.approx(metrics.output_throughput + len(rows) * 0.5)


def test_an_empty_run_prints_zeros() -> None:
    metrics = compute_metrics([RequestRecord(0.0, error="x")], 0.0)
    assert metrics.request_throughput == 0.0 and "P99 ITL (ms):" in format_block(metrics)


def test_goodput_pairs() -> None:
    assert parse_goodput(["ttft:200", "e2el:1e3"]) == {"ttft": 200.0, "e2el": 1000.0}
    for wrong in ("ttft", "itl:5", "tpot:x", "tpot:-1", "tpot:nan"):
        with pytest.raises(ConfigError, match="--goodput"):
            parse_goodput([wrong])


def test_result_files_are_named_as_vllm_names_them() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5)
    path = result_path("d", None, backend="openai", rate=math.inf, limit=4, model="Qwen/Qwen3-0.6B", now=now)
    assert path == Path("d/openai-infqps-concurrency4-Qwen3-0.6B-20260102-030405.json")
    assert result_path(None, "x.json", backend="openai", rate=1, limit=None, model="m", now=now) == Path(
        "x.json"
    )
