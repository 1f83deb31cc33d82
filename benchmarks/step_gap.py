"""What asynchronous scheduling buys: the time a device idles between two steps, and tokens/s of a real CPU model.

    python benchmarks/step_gap.py gap [--json benchmarks/results/step_gap.json]
    python benchmarks/step_gap.py cpu [--pairs 15] [--json benchmarks/results/async_on_cpu.json]

gap  A timed device whose step takes 5 ms, 64 sequences, the production server and brain, the client in another process.
     Measured on the executor's thread, over steps in which all 64 sequences decode: *idle* = from the end of the
     device's work in step N to the begin of its work in N+1 (sampling and the answer's objects included), *between* =
     from the return of step N to the call of step N+1 (scheduling, thread hand-overs and outputs only).
cpu  Two engine processes, asynchronous scheduling on and off, take turns at the same batch of requests. Reports the
     ratio of output tokens/s over the pairs with a bootstrap interval, and CPU seconds of the engine per token.

Other work on the machine shows: the load average is stored with the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.base.clock import MonotonicClock
from xllm.base.event_loop import run_event_loop
from xllm.engine.brain import build_brain
from xllm.engine.executor.thread import ThreadExecutor
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.server.engine_server import EngineServer
from xllm.engine.timed import TimedRunner
from xllm.perf.step_time import StepTimeProfile
from xllm.rpc.client import EngineClient
from xllm.types.batch import Batch, BatchResult, StepMask
from xllm.types.instance import InstanceInfo
from xllm.types.kv_layout import build_attention_layout
from xllm.types.output import OutputFrame
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

NUM_ROWS, STEP_S, WARM_STEPS = 64, 5e-3, 50
PROMPT_TOKENS = 64
VOCAB = 32_000
DEVICE = StepTimeProfile(
    name="5 ms", num_params=0, weight_bytes=0, num_layers=0, num_heads=0, head_dim=0, kv_bytes_per_token=0,
    peak_flops=1e15, bandwidth_bytes_s=1e12, overhead_s=STEP_S,
)  # fmt: skip


class GapRunner(TimedRunner):
    """Notes when the device's work begins and ends; one time line per full decode step."""

    def __init__(self) -> None:
        super().__init__(DEVICE, vocab_size=VOCAB, num_layers=1)
        self.idle_s: list[float] = []
        self.between_s: list[float] = []
        self._busy_end_s = self._run_end_s = 0.0
        self._follows_full = False

    def run(self, batch: Batch, take_mask: Callable[[], StepMask]) -> BatchResult:
        begin_s = time.perf_counter()
        is_full = len(batch.rows) == batch.num_tokens == NUM_ROWS
        if is_full and self._follows_full:
            self.idle_s.append(begin_s - self._busy_end_s)
            self.between_s.append(begin_s - self._run_end_s)
        result = super().run(batch, take_mask)
        self._follows_full = is_full
        self._run_end_s = time.perf_counter()
        return result

    def answer(self, batch: Batch, mask: StepMask | None, duration_s: float) -> BatchResult:
        self._busy_end_s = time.perf_counter()
        return super().answer(batch, mask, duration_s)


async def serve_gap(depth: int, num_steps: int) -> dict[str, Any]:
    """Serve one client process until it has all its tokens; returns the gaps."""
    runner = GapRunner()
    clock = MonotonicClock()
    longest = PROMPT_TOKENS + WARM_STEPS + num_steps + 8
    core = build_brain(
        layout=build_attention_layout(
            block_size=16, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
        ),
        num_blocks=[NUM_ROWS * (longest // 16 + 2)],
        limits=SchedulerLimits(max_num_seqs=NUM_ROWS, max_num_batched_tokens=8192, max_model_len=longest),
        vocab_size=VOCAB,
        clock=clock,
        depth=depth,
    )
    info = InstanceInfo(id="gap", incarnation="x", address="", model="timed", vocab_size=VOCAB)
    server = EngineServer(core, ThreadExecutor(runner), info, clock=clock)
    address = await server.start("127.0.0.1:0")
    running = asyncio.ensure_future(server.run())
    client = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "client", address, str(WARM_STEPS + num_steps)
    )
    status = await asyncio.wait_for(client.wait(), 600)
    server.end("the benchmark is over")
    await running
    if status != 0:
        raise RuntimeError(f"the client ended with status {status}")
    idle, between = runner.idle_s[WARM_STEPS:], runner.between_s[WARM_STEPS:]
    return {"steps": len(idle), "idle_ms": percentiles(idle), "between_ms": percentiles(between)}


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    picks = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {name: round(1e3 * ordered[int(q * (len(ordered) - 1))], 4) for name, q in picks.items()}


async def run_client(address: str, num_tokens: int) -> int:
    """Ask for NUM_ROWS streams and wait for their ends; every token of every stream must come once."""
    counts = dict.fromkeys((f"r{i}" for i in range(NUM_ROWS)), 0)
    num_open = NUM_ROWS
    done = asyncio.Event()

    def take(frame: OutputFrame) -> None:
        nonlocal num_open
        for output in frame.outputs:
            counts[output.request_id] += len(output.token_ids)
            num_open -= output.finish_reason is not None
        if num_open == 0:
            done.set()

    client = await EngineClient.connect(address, peer="benchmark", on_outputs=take)
    rng = random.Random(0)
    for name in counts:
        prompt = tuple(rng.randrange(VOCAB) for _ in range(PROMPT_TOKENS))
        sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        await client.submit(Request(id=name, prompt_token_ids=prompt, seed=1, sampling=sampling))
    await asyncio.wait_for(done.wait(), 500)
    await client.close()
    return 0 if set(counts.values()) == {num_tokens} else 1


def measure_gap(args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of off and on by turns; the figures of each round, and the median over rounds."""
    rounds: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    for _ in range(args.rounds):
        for name, depth in (("off", 1), ("on", 2)):
            rounds[name].append(run_event_loop(serve_gap(depth, args.steps)))
            print(name, json.dumps(rounds[name][-1]), flush=True)
    summary = {
        name: {
            kind: {q: statistics.median(r[kind][q] for r in runs) for q in ("p50", "p90", "p99")}
            for kind in ("idle_ms", "between_ms")
        }
        for name, runs in rounds.items()
    }
    return {"step_ms": STEP_S * 1e3, "rows": NUM_ROWS, "medians_over_rounds": summary, "rounds": rounds}


# -- the CPU model


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_cpu(args: argparse.Namespace) -> dict[str, Any]:
    """Pairs of runs, on and off in turning order."""
    from xllm import LLM

    rng = random.Random(1)
    engines = {
        name: LLM(
            args.model,
            async_scheduling=is_on,
            **({"num_threads": args.num_threads} if args.num_threads else {}),
        )
        for name, is_on in (("off", False), ("on", True))
    }
    sampling = SamplingParams(max_tokens=args.output_tokens, ignore_eos=True, temperature=0.8, seed=1)
    prompts = [
        {"prompt_token_ids": [rng.randrange(5, 1000) for _ in range(args.prompt_tokens)]}
        for _ in range(args.rows)
    ]
    num_tokens = args.rows * args.output_tokens
    pairs: list[dict[str, float]] = []
    streams: dict[str, list[list[int]]] = {}
    try:
        for index in range(args.pairs + 1):
            pair: dict[str, float] = {}
            for name in ("off", "on") if index % 2 else ("on", "off"):
                llm = engines[name]
                began_s, began_cpu_s = time.perf_counter(), cpu_seconds(llm.engine_pid)
                outputs = llm.generate(prompts, sampling, use_tqdm=False)
                pair[f"{name}_tokens_per_s"] = num_tokens / (time.perf_counter() - began_s)
                pair[f"{name}_cpu_us_per_token"] = (
                    1e6 * (cpu_seconds(llm.engine_pid) - began_cpu_s) / num_tokens
                )
                streams[name] = [o.outputs[0].token_ids for o in outputs]
            if streams["on"] != streams["off"]:
                raise RuntimeError("the streams differ")
            if index:  # the first pair warms up
                pairs.append(pair)
                print(json.dumps(pair), flush=True)
    finally:
        for llm in engines.values():
            llm.close()
    ratios = [pair["on_tokens_per_s"] / pair["off_tokens_per_s"] for pair in pairs]
    low, high = bootstrap(ratios)
    medians = {key: round(statistics.median(p[key] for p in pairs), 2) for key in pairs[0]}
    result = {"ratio_on_over_off": statistics.median(ratios), "interval_95": [low, high], "medians": medians}
    print(json.dumps(result))
    return {"model": args.model, "rows": args.rows, **result, "pairs": pairs}


def bootstrap(values: list[float], num_draws: int = 10_000) -> tuple[float, float]:
    """95 % interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(num_draws))
    return medians[int(0.025 * num_draws)], medians[int(0.975 * num_draws)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    gap = commands.add_parser("gap")
    gap.add_argument("--rounds", type=int, default=3)
    gap.add_argument("--steps", type=int, default=400, help="measured steps of a round")
    gap.add_argument("--json", type=Path)
    cpu = commands.add_parser("cpu")
    cpu.add_argument("--model", default="demo")
    cpu.add_argument("--pairs", type=int, default=15)
    cpu.add_argument("--rows", type=int, default=32)
    cpu.add_argument("--prompt-tokens", type=int, default=32)
    cpu.add_argument("--output-tokens", type=int, default=96)
    cpu.add_argument("--num-threads", type=int)
    cpu.add_argument("--json", type=Path)
    client = commands.add_parser("client", help="started by gap")
    client.add_argument("address")
    client.add_argument("num_tokens", type=int)
    args = parser.parse_args()
    if args.command == "client":
        return asyncio.run(run_client(args.address, args.num_tokens))
    measured = measure_gap(args) if args.command == "gap" else measure_cpu(args)
    result = {"environment": describe(), **measured}
    if args.command == "gap":
        print(json.dumps(measured["medians_over_rounds"], indent=2))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
