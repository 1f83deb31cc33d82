"""SLO attainment over *offered* requests, by policy and load, in simulation: production brain, simulated device.

    python benchmarks/slo_attainment.py [--json benchmarks/results/slo_attainment.json]

Workload, fixed before any tuning: Qwen3-8B on one H200 (roofline), 400,000 tokens of KV, 8192 tokens per step, 256
rows. 80 % short prompts (log-normal, median 300, 32 to 2000; TTFT 500 ms), 20 % long ones (median 6000, 2000 to
16,000; TTFT 3 s), outputs log-normal (median 100, 8 to 1024), TPOT 50 ms for all; Poisson arrivals. Load 1 is the
request rate at which FCFS finishes the same requests when they all wait at time 0, without its first tenth and last
fifth. A request attains its SLO when it ends by itself, its first token came within TTFT and its mean time per output
token is within TPOT; refused ones do not. Throughput is prompt and output tokens of completed requests per second.

The brain does not know the device: its step-time model starts from a prior that is wrong on purpose (compute 1.7 times
too slow, memory 1.5 times too fast, overhead three times too high) and learns.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.engine.brain import build_brain
from xllm.engine.core.engine_core import EngineCore
from xllm.engine.scheduler.limits import SchedulerLimits, SloOptions
from xllm.perf.learned import LearnedStepTime
from xllm.perf.step_time import PROFILES
from xllm.sim.events import EventQueue
from xllm.sim.report import Report, RequestRecord, percentile
from xllm.sim.run import simulate
from xllm.sim.trace import EOS_TOKEN, TraceRequest
from xllm.types.kv_layout import build_attention_layout
from xllm.types.request import Request, SloBudgets
from xllm.types.sampling import SamplingParams
from xllm.workload.arrivals import AtOnce, Gamma
from xllm.workload.lengths import LogNormal

DEVICE = PROFILES["h200-8b"]
PRIOR = replace(
    DEVICE, name="wrong", peak_flops=DEVICE.peak_flops / 1.7, bandwidth_bytes_s=DEVICE.bandwidth_bytes_s * 1.5,
    overhead_s=DEVICE.overhead_s * 3,
)  # fmt: skip
KV_TOKENS, BLOCK, BUDGET, ROWS = 400_000, 16, 8192, 256
SHORT, LONG = LogNormal(300, 0.8, 32, 2000), LogNormal(6000, 0.5, 2000, 16_000)
OUTPUTS, MAX_TOKENS = LogNormal(100, 0.8, 8, 1024), 1024
SHORT_SHARE, SHORT_TTFT_MS, LONG_TTFT_MS, TPOT_MS = 0.8, 500.0, 3000.0, 50.0
LOADS = (0.6, 0.9, 1.2, 1.5)
POLICIES = {
    "fcfs": ("fcfs", SloOptions(token_budget=False, early_rejection=False)),
    "fcfs+rejection": ("fcfs", SloOptions()),
    "deadline+rejection": ("deadline", SloOptions()),
    "urgency": ("urgency", SloOptions(early_rejection=False)),
    "urgency+rejection": ("urgency", SloOptions()),
}


def build_trace(num_requests: int, rate_per_s: float, seed: int) -> list[TraceRequest]:
    rng = random.Random(seed)
    arrivals = AtOnce() if math.isinf(rate_per_s) else Gamma(rate_per_s)
    trace = []
    for index, arrival_s in enumerate(arrivals.times_s(num_requests, seed)):
        is_short = rng.random() < SHORT_SHARE
        length = (SHORT if is_short else LONG).draw(rng)
        prompt = (index % 31_000 + 1, *range(1, length))  # no two begin alike, so nothing is shared
        request = Request(
            id=f"{'short' if is_short else 'long'}{index}", prompt_token_ids=prompt, seed=index,
            sampling=SamplingParams(max_tokens=MAX_TOKENS), eos_token_ids=(EOS_TOKEN,),
            slo=SloBudgets(ttft_ms=SHORT_TTFT_MS if is_short else LONG_TTFT_MS, tpot_ms=TPOT_MS),
        )  # fmt: skip
        trace.append(TraceRequest(request, arrival_s, OUTPUTS.draw(rng)))
    return trace


def build_core(policy: str, events: EventQueue) -> EngineCore:
    order, slo = POLICIES[policy]
    return build_brain(
        layout=build_attention_layout(block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32"),
        num_blocks=[KV_TOKENS // BLOCK],
        limits=SchedulerLimits(
            max_num_seqs=ROWS, max_num_batched_tokens=BUDGET, max_model_len=20_000, max_num_queued_reqs=0
        ),
        vocab_size=32_000, clock=events.clock, scheduling_policy=order, times=LearnedStepTime(PRIOR), slo=slo,
    )  # fmt: skip


def run(policy: str, trace: list[TraceRequest]) -> tuple[Report, EngineCore]:
    events = EventQueue()
    core = build_core(policy, events)
    return simulate(trace, core, DEVICE, events), core


def attains(name: str, record: RequestRecord) -> bool:
    ttft_ms = SHORT_TTFT_MS if name.startswith("short") else LONG_TTFT_MS
    in_time = record.ttft_s * 1e3 <= ttft_ms and record.tpot_s * 1e3 <= TPOT_MS
    return record.is_complete and in_time


def measure_capacity(job: tuple[int, int]) -> float:
    """Requests per second that FCFS finishes when all of them wait."""
    num_requests, seed = job
    saturated, _ = run("fcfs", build_trace(num_requests, math.inf, seed))
    begin_s, end_s = 0.1 * saturated.duration_s, 0.8 * saturated.duration_s
    finished = sum(begin_s < (r.last_token_s or 0.0) <= end_s for r in saturated.records.values())
    return finished / (end_s - begin_s)


def run_cell(job: tuple[str, float, int, int, float]) -> dict[str, Any]:
    policy, load, num_requests, seed, capacity = job
    report, core = run(policy, build_trace(num_requests, load * capacity, seed))
    records = report.records
    done = [r for r in records.values() if r.is_complete]
    kinds = {k: {n: r for n, r in records.items() if n.startswith(k)} for k in ("short", "long")}
    tokens = sum(r.prompt_tokens + r.output_tokens for r in done)
    return {
        "policy": policy,
        "load": load,
        "seed": seed,
        "requests": num_requests,
        "capacity_req_s": capacity,
        "attainment": sum(attains(n, r) for n, r in records.items()) / num_requests,
        "attainment_short": sum(attains(n, r) for n, r in kinds["short"].items()) / len(kinds["short"]),
        "attainment_long": sum(attains(n, r) for n, r in kinds["long"].items()) / len(kinds["long"]),
        "attainment_accepted": sum(attains(n, r) for n, r in records.items()) / max(1, len(done)),
        "rejected": sum(r.refusal is not None for r in records.values()) / num_requests,
        "tokens_per_s": tokens / report.duration_s,
        "output_tokens_per_s": report.output_tokens_per_s,
        "ttft_p99_s": percentile((r.ttft_s for r in done), 99),
        "tpot_p99_s": percentile((r.tpot_s for r in done), 99),
        "preemptions": report.num_preemptions,
        "busy": report.busy_s / report.duration_s,
        "step_time_error": core.times.error,
    }


def summarise(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for load in sorted({c["load"] for c in cells}):
        base = [c for c in cells if c["load"] == load and c["policy"] == "fcfs"]
        for policy in dict.fromkeys(c["policy"] for c in cells):
            mine = [c for c in cells if c["load"] == load and c["policy"] == policy]
            row: dict[str, Any] = {"policy": policy, "load": load, "seeds": len(mine)}
            for name in (
                "attainment", "attainment_short", "attainment_long", "attainment_accepted", "rejected", "tokens_per_s",
                "output_tokens_per_s",
                "ttft_p99_s", "busy", "step_time_error",
            ):  # fmt: skip
                row[name] = statistics.mean(c[name] for c in mine)
            if base:
                row["attainment_vs_fcfs"] = row["attainment"] / statistics.mean(c["attainment"] for c in base)
                row["throughput_vs_fcfs"] = row["tokens_per_s"] / statistics.mean(
                    c["tokens_per_s"] for c in base
                )
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        capacities = pool.map(measure_capacity, [(args.requests, seed) for seed in args.seeds])
        jobs = [
            (policy, load, args.requests, seed, capacity)
            for load in args.loads
            for policy in args.policies
            for seed, capacity in zip(args.seeds, capacities, strict=True)
        ]
        cells = list(pool.imap(run_cell, jobs))
    rows = summarise(cells)
    for row in rows:
        print(
            f"load {row['load']:.1f} {row['policy']:>19}: attained {row['attainment']:6.1%} (short"
            f" {row['attainment_short']:6.1%}, long {row['attainment_long']:6.1%}, of accepted"
            f" {row['attainment_accepted']:6.1%}) rejected {row['rejected']:6.1%}"
            f"  {row['tokens_per_s']:8.0f} tok/s, {row['output_tokens_per_s']:6.0f} out  TTFT p99"
            f" {row['ttft_p99_s']:6.2f} s  x{row.get('attainment_vs_fcfs', math.nan):.2f}"
            f" throughput x{row.get('throughput_vs_fcfs', math.nan):.3f}  error {row['step_time_error']:.1%}"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"environment": describe(), "summary": rows, "cells": cells}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
