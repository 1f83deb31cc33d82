"""The simulator drives the production brain; two runs of one trace are the same run."""

from __future__ import annotations

import pytest

from xllm.engine.brain import build_brain
from xllm.engine.scheduler.admission.policy import AdmissionPolicy
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.perf.step_time import PROFILES
from xllm.sim.events import EventQueue
from xllm.sim.report import Report, percentile
from xllm.sim.run import simulate
from xllm.sim.trace import build_trace
from xllm.types.kv_layout import build_attention_layout
from xllm.workload.arrivals import AtOnce, Gamma
from xllm.workload.lengths import Fixed, Uniform

LAYOUT = build_attention_layout(block_size=16, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32")


def run(
    *, rate: float | None = None, num_blocks: int = 200, depth: int = 1, host_s: float = 0.0, seed: int = 0,
    admission: AdmissionPolicy | None = None,
) -> Report:  # fmt: skip
    events = EventQueue()
    core = build_brain(
        layout=LAYOUT, num_blocks=[num_blocks], vocab_size=1000, clock=events.clock, depth=depth, admission=admission,
        limits=SchedulerLimits(max_num_seqs=32, max_num_batched_tokens=512, max_model_len=512),
    )  # fmt: skip
    trace = build_trace(
        num_requests=40, arrivals=Gamma(rate) if rate else AtOnce(), prompt_lengths=Uniform(10, 100),
        output_lengths=Uniform(20, 200), max_tokens=300, vocab_size=1000, seed=seed,
    )  # fmt: skip
    report = simulate(trace, core, PROFILES["h200-8b"], events, host_s=host_s, check=True)
    assert [r.output_tokens for r in report.records.values()] == [t.output_tokens for t in trace]
    return report


def test_a_run_is_a_function_of_its_inputs() -> None:
    first, second = run(rate=20.0), run(rate=20.0)
    assert first == second
    assert first != run(rate=20.0, seed=1)


def test_times_are_those_of_the_profile() -> None:
    events = EventQueue()
    core = build_brain(
        layout=LAYOUT, num_blocks=[64], vocab_size=1000, clock=events.clock,
        limits=SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=512, max_model_len=512),
    )  # fmt: skip
    trace = build_trace(
        num_requests=1, arrivals=AtOnce(), prompt_lengths=Fixed(100), output_lengths=Fixed(11), max_tokens=50,
        vocab_size=1000, seed=0,
    )  # fmt: skip
    report = simulate(trace, core, PROFILES["h200-8b"], events)
    record = report.records["r0"]
    assert report.num_steps == 11
    assert record.finish_reason == "stop"
    assert report.duration_s == pytest.approx(report.busy_s)
    assert record.ttft_s + 10 * record.tpot_s == pytest.approx(report.duration_s)
    assert record.tpot_s == pytest.approx(record.max_gap_s, rel=0.05)


def test_depth_two_hides_the_hosts_time() -> None:
    slow, fast = run(host_s=0.005), run(host_s=0.005, depth=2)
    assert slow.duration_s - slow.busy_s > 0.9 * 0.005 * slow.num_steps
    assert fast.duration_s - fast.busy_s < 0.1 * (slow.duration_s - slow.busy_s)


def test_memory_pressure_shows_as_preemptions() -> None:
    assert run(num_blocks=60).num_preemptions > 0
    assert run(num_blocks=2000).num_preemptions == 0


def test_percentiles_by_nearest_rank() -> None:
    assert [percentile([3.0, 1.0, 2.0], p) for p in (0, 50, 99, 100)] == [1.0, 2.0, 3.0, 3.0]
