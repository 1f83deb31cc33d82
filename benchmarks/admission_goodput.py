"""Goodput of the admission policies when time is honest: re-prefill after an eviction costs its steps.

    python benchmarks/admission_goodput.py [--requests 1500] [--json benchmarks/results/admission_goodput.json]

Production brain on a simulated device (Qwen3-8B on one H200, roofline prior), 60,000 tokens of KV, prefix cache on.
A request is good when TTFT <= 5 s and no gap between its tokens exceeds 0.3 s; goodput counts good ones
over all that were offered. Workloads, fixed before any tuning:

  poisson  prompts log-normal (median 400), outputs log-normal (median 500, sigma 0.8), at most 4096; three rates
  bursty   the same lengths, arrivals at 3x the rate for 10 s, then quiet for 20 s
  shift    the first half of the requests has outputs of median 150, the second half of median 1200
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msgspec import structs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.admission.table import ADMISSION_POLICIES, AdmissionSettings, build_admission
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.perf.step_time import PROFILES
from xllm.sim.events import EventQueue
from xllm.sim.report import RequestRecord, median, percentile
from xllm.sim.run import simulate
from xllm.sim.trace import TraceRequest, build_trace
from xllm.types.kv_layout import build_attention_layout
from xllm.workload.arrivals import ArrivalProcess, Gamma, OnOff
from xllm.workload.lengths import LogNormal

KV_TOKENS, BLOCK, BUDGET, MAX_TOKENS = 60_000, 16, 2048, 4096
TTFT_S, GAP_S = 5.0, 0.3
RATES = (6.0, 8.0, 10.0)
PROMPTS, OUTPUTS = LogNormal(400, 0.8, 16, 3000), LogNormal(500, 0.8, 8, MAX_TOKENS)


def is_good(record: RequestRecord) -> bool:
    return record.ttft_s <= TTFT_S and record.max_gap_s <= GAP_S


def trace_of(arrivals: ArrivalProcess, outputs: LogNormal, num: int, seed: int) -> list[TraceRequest]:
    return build_trace(
        num_requests=num,
        arrivals=arrivals,
        prompt_lengths=PROMPTS,
        output_lengths=outputs,
        max_tokens=MAX_TOKENS,
        vocab_size=32_000,
        seed=seed,
    )


def shifted(num: int, seed: int, rates: Sequence[float]) -> list[TraceRequest]:
    short = trace_of(Gamma(rates[0]), LogNormal(150, 0.8, 8, MAX_TOKENS), num // 2, seed)
    long = trace_of(Gamma(rates[1]), LogNormal(1200, 0.6, 8, MAX_TOKENS), num - num // 2, seed + 1)
    begin_s = short[-1].arrival_s
    moved = []
    for index, item in enumerate(long):
        request = structs.replace(item.request, id=f"s{index}")
        moved.append(replace(item, request=request, arrival_s=begin_s + item.arrival_s))
    return short + moved


def build_workload(name: str, num: int, seed: int) -> list[TraceRequest]:
    kind, _, rate = name.partition("@")
    if kind == "poisson":
        return trace_of(Gamma(float(rate)), OUTPUTS, num, seed)
    if kind == "bursty":
        return trace_of(OnOff(3 * float(rate), 0.01, 10.0, 20.0), OUTPUTS, num, seed)
    return shifted(num, seed, (16.0, 4.0))


WORKLOADS = (*(f"poisson@{r:g}" for r in RATES), "bursty@7", "shift")


def run_cell(job: tuple[str, str, int, int]) -> dict[str, Any]:
    workload, policy, num_requests, seed = job
    events = EventQueue()
    core = build_brain(
        layout=build_attention_layout(
            block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32"
        ),
        num_blocks=[KV_TOKENS // BLOCK],
        limits=SchedulerLimits(max_num_seqs=256, max_num_batched_tokens=BUDGET, max_model_len=8192),
        vocab_size=32_000,
        clock=events.clock,
        admission=build_admission(policy, AdmissionSettings(chunk_tokens=BUDGET, seed=seed)),
    )
    report = simulate(build_workload(workload, num_requests, seed), core, PROFILES["h200-8b"], events)
    records = list(report.records.values())
    return {
        "workload": workload,
        "policy": policy,
        "seed": seed,
        "goodput_per_s": report.goodput_per_s(is_good),
        "good_share": report.share(is_good),
        "output_tokens_per_s": report.output_tokens_per_s,
        "ttft_p50_s": median(r.ttft_s for r in records),
        "ttft_p99_s": percentile((r.ttft_s for r in records), 99),
        "max_gap_p99_s": percentile((r.max_gap_s for r in records), 99),
        "utilisation": report.utilisation,
        "evictions": report.eviction_share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--policies", nargs="+", default=list(ADMISSION_POLICIES), choices=ADMISSION_POLICIES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs = [(w, p, args.requests, s) for w in args.workloads for p in args.policies for s in args.seeds]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        cells = list(pool.imap(run_cell, jobs))
    names = [k for k in cells[0] if k not in ("workload", "policy", "seed")]
    print(f"{'workload':>12} {'policy':>12} " + " ".join(f"{n:>19}" for n in names))
    for workload in args.workloads:
        for policy in args.policies:
            mine = [c for c in cells if (c["workload"], c["policy"]) == (workload, policy)]
            values = " ".join(f"{median(c[n] for c in mine):>19.3f}" for n in names)
            print(f"{workload:>12} {policy:>12} {values}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": describe(), "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
