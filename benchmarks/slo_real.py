"""The real run beside slo_attainment.py: `xllm serve` as processes, HTTP streams, real time; only the device is timed.

    python benchmarks/slo_real.py [--json benchmarks/results/slo_real.json]

The engine is `--executor timed:FILE`: production brain, server, RPC and edge; a step lasts what a profile of about
7,000 prompt tokens per second says. 80 % prompts of 50 to 300 tokens (TTFT 500 ms), 20 % of 1000 to 3000 (TTFT 3 s),
8 to 48 output tokens, TPOT 100 ms. Poisson arrivals at ``--load`` times the rate at which FCFS works off such
requests in simulation on the same profile, against FCFS without and urgency with early rejection. Times are the
client's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.perf.step_time import StepTimeProfile, profile_json
from xllm.sim.events import EventQueue
from xllm.sim.run import simulate
from xllm.sim.trace import TraceRequest
from xllm.types.kv_layout import build_attention_layout
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams
from xllm.workload.arrivals import Gamma

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "xllm" / "assets" / "demo_model"
DEVICE = StepTimeProfile(
    name="benchmark", num_params=0.6e9, weight_bytes=1.2e9, num_layers=28, num_heads=16, head_dim=128,
    kv_bytes_per_token=114_688, peak_flops=12e12, bandwidth_bytes_s=200e9, overhead_s=1e-3,
)  # fmt: skip
POLICIES = {
    "fcfs": [
        "--scheduling-policy",
        "fcfs",
        "--no-early-rejection",
        "--set",
        "scheduler.slo_token_budget=false",
    ],
    "urgency+rejection": ["--scheduling-policy", "urgency"],
}
TTFT_MS, TPOT_MS = {"short": 500.0, "long": 3000.0}, 100.0
TIMEOUT_S = 240.0
BUDGET = 2048


@dataclass(frozen=True)
class Planned:
    kind: str
    prompt: list[int]
    max_tokens: int


@dataclass
class Outcome:
    kind: str
    prompt_tokens: int
    status: int = 0
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0

    @property
    def attains(self) -> bool:
        if self.status != 200 or self.first_s is None:
            return False
        tpot_ms = 1e3 * (self.last_s - self.first_s) / max(1, self.tokens - 1)
        return self.first_s * 1e3 <= TTFT_MS[self.kind] and tpot_ms <= TPOT_MS


class Server:
    """`xllm serve` over the timed engine."""

    def __init__(self, profile: Path, flags: list[str]) -> None:
        command = [
            sys.executable,
            "-m",
            "xllm.cli.main",
            "serve",
            str(DEMO),
            "--port",
            "0",
            "--max-model-len",
            "4096",
        ]
        command += [
            "--executor",
            f"timed:{profile}",
            "--max-num-batched-tokens",
            "2048",
            "--max-num-queued-reqs",
            "0",
        ]
        self._command = [*command, *flags]
        self.log: list[str] = []
        self.url = ""
        self._ready = threading.Event()

    def __enter__(self) -> Server:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=env
        )
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(120) or not self.url:
            self._process.kill()
            raise RuntimeError("the server did not get ready:\n" + "".join(self.log))
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            found = re.search(r"(http://[\d.]+:\d+)", line)
            if found and not self.url:
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def __exit__(self, *args: object) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def plan(count: int, seed: int) -> list[Planned]:
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        kind = "short" if rng.random() < 0.8 else "long"
        length = rng.randint(50, 300) if kind == "short" else rng.randint(1000, 3000)
        out.append(Planned(kind, [rng.randrange(10, 4000) for _ in range(length)], rng.randint(8, 48)))
    return out


def simulated_capacity(planned: list[Planned]) -> float:
    """Requests per second of FCFS on this device when all wait, without first tenth and last fifth."""
    events = EventQueue()
    core = build_brain(
        layout=build_attention_layout(
            block_size=16, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32"
        ),
        num_blocks=[64 * 4096 // 16],
        limits=SchedulerLimits(
            max_num_seqs=128, max_num_batched_tokens=BUDGET, max_model_len=4096, max_num_queued_reqs=0
        ),
        vocab_size=4096,
        clock=events.clock,
    )
    trace = [
        TraceRequest(
            Request(id=f"r{i}", prompt_token_ids=tuple(p.prompt), seed=i, eos_token_ids=(2,),
                    sampling=SamplingParams(max_tokens=p.max_tokens, ignore_eos=True)), 0.0, p.max_tokens,
        )
        for i, p in enumerate(planned)
    ]  # fmt: skip
    report = simulate(trace, core, DEVICE, events)
    begin_s, end_s = 0.1 * report.duration_s, 0.8 * report.duration_s
    finished = sum(begin_s < (r.last_token_s or 0.0) <= end_s for r in report.records.values())
    return finished / (end_s - begin_s)


async def ask(session: aiohttp.ClientSession, url: str, planned: Planned) -> Outcome:
    body = {
        "prompt": planned.prompt, "max_tokens": planned.max_tokens, "ignore_eos": True, "stream": True, "seed": 1,
        "ttft_slo_ms": TTFT_MS[planned.kind], "tpot_slo_ms": TPOT_MS, "return_token_ids": True,
    }  # fmt: skip
    outcome = Outcome(planned.kind, len(planned.prompt))
    began_s = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        outcome.status = reply.status
        if reply.status != 200:
            await reply.read()
            return outcome
        async for line in reply.content:
            if line.startswith(b"data: {"):
                now_s = time.perf_counter() - began_s
                choices = json.loads(line[6:]).get("choices") or [{}]
                count = len(choices[0].get("token_ids") or ())
                if count and outcome.first_s is None:
                    outcome.first_s = now_s
                outcome.tokens += count
                outcome.last_s = now_s
    return outcome


async def drive(url: str, planned: list[Planned], times_s: list[float]) -> tuple[list[Outcome], float]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        began_s = time.perf_counter()

        async def one(item: Planned, at_s: float) -> Outcome:
            await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
            return await ask(session, url, item)

        outcomes = await asyncio.gather(*(one(p, t) for p, t in zip(planned, times_s, strict=True)))
        return list(outcomes), time.perf_counter() - began_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--load", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "benchmark.json"
        profile.write_text(profile_json(DEVICE))
        capacity = simulated_capacity(plan(2000, args.seed + 1))
        planned = plan(args.requests, args.seed)
        times_s = Gamma(args.load * capacity).times_s(args.requests, args.seed)
        for policy, flags in POLICIES.items():
            with Server(profile, flags) as server:
                outcomes, lasted_s = asyncio.run(drive(server.url, planned, times_s))
            done = [o for o in outcomes if o.status == 200 and o.first_s is not None]
            row = {
                "policy": policy,
                "load": args.load,
                "requests": args.requests,
                "capacity_req_s": capacity,
                "attainment": sum(o.attains for o in outcomes) / len(outcomes),
                "rejected": sum(o.status == 429 for o in outcomes) / len(outcomes),
                "attainment_accepted": sum(o.attains for o in done) / max(1, len(done)),
                "other_status": sum(o.status not in (200, 429) for o in outcomes),
                "ttft_median_s": statistics.median(o.first_s for o in done),  # type: ignore[type-var]
                "tokens_per_s": sum(o.prompt_tokens + o.tokens for o in done) / lasted_s,
                "duration_s": lasted_s,
            }
            rows.append(row)
            print(
                f"{policy:>18}: attained {row['attainment']:.1%} of offered"
                f" ({row['attainment_accepted']:.1%} of accepted),"
                f" rejected {row['rejected']:.1%}, TTFT median {row['ttft_median_s']:.2f} s,"
                f" {row['tokens_per_s']:.0f} tok/s over {lasted_s:.0f} s (capacity {capacity:.1f} req/s)",
                flush=True,
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": describe(), "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
