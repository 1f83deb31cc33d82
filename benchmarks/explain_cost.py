"""What the always-on decision ring costs: CPU microseconds added per step, over the time of a step.

    python benchmarks/explain_cost.py [--model DIR] [--json benchmarks/results/explain_cost.json]

cost per record  from 10^6 calls of DecisionTrace.record with typical fields (CPU time, the loop itself subtracted)
records per step counted in a run with churn: 64 rows, prompts of 64 tokens, answers of 32, pools so small that
                 sequences are preempted
time of a step   median of real decode steps of the model with 64 rows (bundled demo model by default)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.assets import demo_model_path
from xllm.base.trace import DecisionTrace
from xllm.bench.step import measure_steps
from xllm.config.model import ModelConfig
from xllm.config.serve import EngineConfig
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.perf.step_time import PROFILES
from xllm.sim.events import EventQueue
from xllm.sim.run import simulate
from xllm.sim.trace import build_trace
from xllm.types.kv_layout import build_attention_layout
from xllm.workload.arrivals import AtOnce
from xllm.workload.lengths import Fixed

NUM_CALLS, NUM_ROWS = 1_000_000, 64


class CountingTrace(DecisionTrace):
    """Counts what is recorded."""

    num_records = 0

    def record(self, request_id: str, event: str, fields: object = None) -> None:
        self.num_records += 1


def cost_per_record_us() -> float:
    trace = DecisionTrace()
    loop = range(NUM_CALLS)
    began = time.process_time()
    for index in loop:
        trace.record(
            "chatcmpl-0123456789abcdef", "admitted", {"choice": 0, "step": index, "cached_tokens": 16}
        )
    recorded = time.process_time() - began
    began = time.process_time()
    for _ in loop:
        pass
    return 1e6 * (recorded - (time.process_time() - began)) / NUM_CALLS


def records_per_step() -> tuple[float, int]:
    events = EventQueue()
    trace = CountingTrace(events.clock)
    core = build_brain(
        layout=build_attention_layout(
            block_size=16, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32"
        ),
        num_blocks=[NUM_ROWS * 5],
        limits=SchedulerLimits(max_num_seqs=NUM_ROWS, max_num_batched_tokens=1024, max_model_len=512),
        vocab_size=1000,
        clock=events.clock,
        trace=trace,
    )
    requests = build_trace(
        num_requests=1000,
        arrivals=AtOnce(),
        prompt_lengths=Fixed(64),
        output_lengths=Fixed(32),
        max_tokens=64,
        vocab_size=1000,
        seed=0,
    )
    report = simulate(requests, core, PROFILES["cpu-0.6b"], events)
    return trace.num_records / report.num_steps, report.num_preemptions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(demo_model_path()))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    record_us = cost_per_record_us()
    per_step, preemptions = records_per_step()
    config = EngineConfig(model=ModelConfig(model=args.model))
    (step,) = measure_steps(config, [NUM_ROWS], input_len=64, num_steps=100, seed=0)
    result = {
        "environment": describe(),
        "record_us": record_us,
        "records_per_step": per_step,
        "preemptions": preemptions,
        "step_ms": step.step_ms,
        "share_of_step": record_us * per_step / (1e3 * step.step_ms),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
