"""The Past-Future simulator table (related systems 1), on the production scheduler: utilisation, evictions, steps.

    python benchmarks/admission_table.py [--requests 3000] [--json benchmarks/results/admission_table.json]

120,000 tokens of KV; all requests wait at time 0; lengths uniform: D1 in 32-4k / out 2-4k, D2 in 3-5k / out 3-5k,
D3 in 2-4k / out 32-4k; at most 4096 (D2: 5120) new tokens each. No policy sees a true length, except the oracle. Steps
count, not seconds: like the published table it does not charge prefill, which flatters the aggressive policy; see
admission_goodput.py for the honest comparison.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.admission.conservative import ConservativeAdmission
from xllm.engine.scheduler.admission.history import OutputHistory
from xllm.engine.scheduler.admission.past_future import PastFutureAdmission
from xllm.engine.scheduler.admission.policy import AdmissionPolicy
from xllm.engine.scheduler.admission.watermark import WatermarkAdmission
from xllm.engine.scheduler.admission.zero_evict import ZeroEvictAdmission
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.scheduler.sequence import Sequence
from xllm.perf.step_time import PROFILES
from xllm.sim.events import EventQueue
from xllm.sim.run import simulate
from xllm.sim.trace import build_trace
from xllm.types.kv_layout import build_attention_layout
from xllm.workload.arrivals import AtOnce
from xllm.workload.lengths import Uniform

CAPACITY_TOKENS, BLOCK, BUDGET = 120_000, 16, 32_768
WORKLOADS = {
    "D1": (Uniform(32, 4096), Uniform(2048, 4096), 4096),
    "D2": (Uniform(3072, 5120), Uniform(3072, 5120), 5120),
    "D3": (Uniform(2048, 4096), Uniform(32, 4096), 4096),
}
POLICIES = ("oracle", "past-future", "zero-evict", "conservative", "aggressive")


class OracleAdmission(ZeroEvictAdmission):
    """Zero-evict with the true lengths: what a perfect prediction would reach."""

    def __init__(self, lengths: dict[str, int]) -> None:
        super().__init__(horizon_tokens=2**30, lag_tokens=0)
        self._lengths = lengths

    def _steps(self, seq: Sequence) -> float:
        return float(self._lengths[seq.request.id] - seq.num_output)


def build_policy(name: str, lengths: dict[str, int], seed: int) -> AdmissionPolicy:
    if name == "oracle":
        return OracleAdmission(lengths)
    if name == "past-future":
        history = OutputHistory(window=1000, prior_tokens=512, seed=seed)
        return PastFutureAdmission(history, reserve=0.03, chunk_tokens=BUDGET, lag_tokens=0)
    if name == "zero-evict":
        return ZeroEvictAdmission(horizon_tokens=256, lag_tokens=0)
    if name == "conservative":
        return ConservativeAdmission()
    return WatermarkAdmission(0.01)


def run_cell(job: tuple[str, str, int, int]) -> dict[str, Any]:
    workload, policy, num_requests, seed = job
    prompts, outputs, max_tokens = WORKLOADS[workload]
    events = EventQueue()
    trace = build_trace(
        num_requests=num_requests, arrivals=AtOnce(), prompt_lengths=prompts, output_lengths=outputs,
        max_tokens=max_tokens, vocab_size=32_000, seed=seed,
    )  # fmt: skip
    lengths = {t.request.id: t.output_tokens for t in trace}
    core = build_brain(
        layout=build_attention_layout(block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32"),
        num_blocks=[CAPACITY_TOKENS // BLOCK],
        limits=SchedulerLimits(max_num_seqs=512, max_num_batched_tokens=BUDGET, max_model_len=16_384),
        vocab_size=32_000, clock=events.clock, enable_prefix_caching=False,
        admission=build_policy(policy, lengths, seed),
    )  # fmt: skip
    began = time.perf_counter()
    report = simulate(trace, core, PROFILES["instant"], events)
    assert all(r.is_complete for r in report.records.values())
    return {
        "workload": workload, "policy": policy, "requests": num_requests, "utilisation": report.utilisation,
        "evictions": report.eviction_share, "steps": report.num_steps, "wall_s": time.perf_counter() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    jobs = [(w, p, args.requests, args.seed) for w in args.workloads for p in args.policies]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        cells = []
        for cell in pool.imap(run_cell, jobs):
            cells.append(cell)
            shares = f"utilisation {cell['utilisation']:6.1%}  evictions {cell['evictions']:6.1%}"
            where = f"{cell['workload']} {cell['policy']:>12}"
            print(f"{where}: {shares}  steps {cell['steps']:>8,}  ({cell['wall_s']:.0f} s)", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": describe(), "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
