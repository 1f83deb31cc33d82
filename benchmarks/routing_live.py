"""Routing policies on real processes: one service over four timed engines, HTTP at the front, our RPC between.

    python benchmarks/routing_live.py [--rounds 3] [--seed 0] [--json RESULT.json]

Everything but the model is the production path: ``xllm engine --executor timed:PROFILE`` (brain, KV events, RPC) and
``xllm service --routing-policy P`` (edge, KV index, policy). The prefix workloads are those of ``routing_sim.py``,
fixed before any tuning, token ids modulo the demo model's vocabulary; 64 clients in a closed loop stream 16 tokens.
Engines sleep for what a step lasts: Qwen3-8B on an H200 by roofline, ``--slowdown`` times as slow, so that two cores
carry four engines, the service and the clients. Four instances have 4,000 blocks of 16 tokens each.

Every run starts new processes, so caches are cold; policies take turns within a round, in the other order every
second round. ``one`` is a single instance with the cache of all four and four times their speed, once per workload:
what can be found in a cache at all.

makespan_s        from the first request until the last answer is complete
hit_rate          cached_tokens over prompt_tokens, summed over the ``usage`` of all answers
foreign_cpu       CPUs that other processes of this machine used meanwhile; own_cpu: those that ours used
nice              of all processes of the run: on a machine with other work start it with ``nice -n -10``
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cpu_peers.machine import busy_s, trees_s
from benchmarks.environment import describe
from benchmarks.router_load.routers import MODEL, START_S, Starter, start_service
from benchmarks.routing_sim import BLOCK, DEVICE, NUM_CLIENTS, WORKLOADS, NodeSpec
from xllm.perf.step_time import StepTimeProfile, profile_json
from xllm.sim.report import percentile

NUM_INSTANCES, NUM_OUTPUT, VOCAB, MAX_LEN = 4, 16, 4096, 16_384
POLICIES = ("round_robin", "cache_aware")
METRICS = ("route_decisions", "predicted_cached_tokens", "actual_cached_tokens", "mispredicted_cached_tokens")


@dataclass(slots=True)
class Counts:
    """What the clients saw."""

    ttft_s: list[float] = field(default_factory=list)
    num_prompt: int = 0
    num_cached: int = 0
    last_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """A service and its engines that take requests."""

    url: str
    service: int
    engines: tuple[int, ...]

    @property
    def pids(self) -> tuple[int, ...]:
        """Of all of them."""
        return self.service, *self.engines


def slowed(factor: float) -> StepTimeProfile:
    """The device at a fraction of its speed."""
    return replace(
        DEVICE, name="paced", peak_flops=DEVICE.peak_flops / factor,
        bandwidth_bytes_s=DEVICE.bandwidth_bytes_s / factor, overhead_s=DEVICE.overhead_s * factor,
    )  # fmt: skip


def build_bodies(workload: str, seed: int) -> list[list[bytes]]:
    """Conversations, each a list of request bodies, in the order in which clients take them."""
    rng = random.Random(seed)
    talks = WORKLOADS[workload](rng)
    rng.shuffle(talks)
    fields = {
        "model": "m", "max_tokens": NUM_OUTPUT, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return [
        [json.dumps({**fields, "prompt": [token % VOCAB for token in turn]}).encode() for turn in turns]
        for turns in talks
    ]


def copy_model(folder: Path) -> Path:
    """The demo model's tokenizer and shape with a longer context; timed engines read no weights."""
    target = folder / "model"
    shutil.copytree(MODEL, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "max_position_embeddings": MAX_LEN}))
    return target


@contextlib.contextmanager
def cluster(policy: str, num_instances: int, num_blocks: int, slowdown: float) -> Iterator[Cluster]:
    """Start engines and a service over them; everything ends with the block."""
    spec = NodeSpec()
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start, model = Starter(stack, folder), str(copy_model(folder))
        profile = folder / "profile.json"
        profile.write_text(profile_json(slowed(slowdown)))
        sockets = [folder / f"{number}.sock" for number in range(num_instances)]
        command = [sys.executable, "-m", "xllm.cli.main"]
        engines = [
            start(
                [
                    *command, "engine", model, "--executor", f"timed:{profile}", "--endpoint", f"unix:{path}",
                    "--max-model-len", str(MAX_LEN), "--max-num-seqs", str(spec.max_num_seqs),
                    "--max-num-batched-tokens", str(spec.max_num_batched_tokens),
                    "--block-size", str(BLOCK), "--num-gpu-blocks-override", str(num_blocks),
                ]
            )
            for path in sockets
        ]  # fmt: skip
        url, service = start_service(start, sockets, model, ("--routing-policy", policy))
        yield Cluster(url, service.pid, tuple(engine.pid for engine in engines))


async def ask(session: aiohttp.ClientSession, url: str, body: bytes, counts: Counts) -> None:
    """One request to its end."""
    sent_s, first_s, usage = time.monotonic(), 0.0, None
    headers = {"content-type": "application/json"}
    async with session.post(f"{url}/v1/completions", data=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not first_s and line.startswith(b"data: "):
                first_s = time.monotonic()
            if b'"usage":{' in line or b'"usage": {' in line:
                usage = json.loads(line.removeprefix(b"data: "))["usage"]
    counts.last_s = time.monotonic()
    assert usage is not None and usage["completion_tokens"] == NUM_OUTPUT, usage
    counts.ttft_s.append(first_s - sent_s)
    counts.num_prompt += usage["prompt_tokens"]
    counts.num_cached += usage["prompt_tokens_details"]["cached_tokens"]


async def read_metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Sums of the counters of ``METRICS``, decisions by their reason."""
    async with session.get(f"{url}/metrics") as response:
        text = await response.text()
    found: defaultdict[str, float] = defaultdict(float)
    for line in text.splitlines():
        for name in METRICS:
            if line.startswith(f"xllm:{name}_total"):
                reason = line.partition('reason="')[2].partition('"')[0]
                found[f"{name} {reason}".strip()] += float(line.rpartition(" ")[2])
    return {name: value for name, value in sorted(found.items()) if value}


async def drive(running: Cluster, num_instances: int, talks: list[list[bytes]]) -> dict[str, Any]:
    """The whole workload through a cluster once."""
    left, counts = list(talks), Counts()

    async def client() -> None:
        while left:
            for body in left.pop():
                await ask(session, running.url, body, counts)

    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        async with asyncio.timeout(START_S):
            while True:
                async with session.get(f"{running.url}/health") as response:
                    states = [row["state"] for row in (await response.json())["instances"].values()]
                if states == ["ready"] * num_instances:
                    break
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)  # its first snapshots
        before = busy_s(), trees_s(running.pids), trees_s([running.service]), time.process_time()
        begin_s = time.monotonic()
        await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
        wall_s = time.monotonic() - begin_s
        after = busy_s(), trees_s(running.pids), trees_s([running.service]), time.process_time()
        metrics = await read_metrics(session, running.url)
    busy, cluster_s, service_s, own_s = (b - a for a, b in zip(before, after, strict=True))
    makespan_s = counts.last_s - begin_s
    return {
        "makespan_s": round(makespan_s, 2),
        "requests_per_s": round(len(counts.ttft_s) / makespan_s, 2),
        "hit_rate": round(counts.num_cached / counts.num_prompt, 4),
        "ttft_p50_s": round(percentile(counts.ttft_s, 50), 3),
        "ttft_p99_s": round(percentile(counts.ttft_s, 99), 3),
        "requests": len(counts.ttft_s),
        "prompt_tokens": counts.num_prompt,
        "cached_tokens": counts.num_cached,
        "own_cpu": round((cluster_s + own_s) / wall_s, 2),
        "service_cpu": round(service_s / wall_s, 2),
        "foreign_cpu": round(max(0.0, busy - cluster_s - own_s) / wall_s, 2),
        "metrics": metrics,
    }


def run(policy: str, talks: list[list[bytes]], slowdown: float) -> dict[str, Any]:
    """One run on new processes; ``one`` is a single instance with everything that four have."""
    is_one = policy == "one"
    num_instances = 1 if is_one else NUM_INSTANCES
    num_blocks = NodeSpec().num_blocks * (NUM_INSTANCES if is_one else 1)
    speed = slowdown / NUM_INSTANCES if is_one else slowdown
    with cluster("round_robin" if is_one else policy, num_instances, num_blocks, speed) as running:
        return asyncio.run(drive(running, num_instances, talks))


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and cache_aware next to round_robin round by round."""
    keys = ("makespan_s", "requests_per_s", "hit_rate", "ttft_p50_s", "ttft_p99_s")
    found: dict[str, Any] = {
        name: {key: round(statistics.median(row[key] for row in runs), 4) for key in keys}
        for name, runs in rows.items()
    }
    pairs = zip(rows["cache_aware"], rows["round_robin"], strict=True)
    ratios = [round(one["requests_per_s"] / other["requests_per_s"], 3) for one, other in pairs]
    found["cache_aware_over_round_robin"] = {"median": statistics.median(ratios), "rounds": ratios}
    if "one" in rows:
        share = found["cache_aware"]["hit_rate"] / found["one"]["hit_rate"]
        found["cache_aware_hit_rate_over_one"] = round(share, 4)
    runs = [row for each in rows.values() for row in each]
    found["foreign_cpu_max"] = max(row["foreign_cpu"] for row in runs)
    found["own_cpu_max"] = max(row["own_cpu"] for row in runs)
    return found


def measure(workloads: Sequence[str], rounds: int, seed: int, slowdown: float) -> dict[str, Any]:
    """See the module."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in workloads}
    for turn in range(rounds):
        for workload in workloads:
            talks = build_bodies(workload, seed)
            policies = POLICIES if turn % 2 == 0 else POLICIES[::-1]
            for policy in (*policies, *(("one",) if turn == 0 else ())):
                row = run(policy, talks, slowdown)
                rows[workload].setdefault(policy, []).append(row)
                print(f"round {turn}: {workload} {policy}", json.dumps(row), flush=True)
    found: dict[str, Any] = {
        "seed": seed, "slowdown": slowdown, "rounds": rounds, "clients": NUM_CLIENTS, "nice": os.nice(0),
    }  # fmt: skip
    for workload in workloads:
        found[workload] = {**summarise(rows[workload]), "runs": rows[workload]}
    return found


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workloads", default="documents,chats,deep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slowdown", type=float, default=4.0)
    parser.add_argument("--json")
    args = parser.parse_args()
    result: dict[str, Any] = {"environment": describe()}
    print(json.dumps(result["environment"]), flush=True)
    result |= measure(args.workloads.split(","), args.rounds, args.seed, args.slowdown)
    for name in args.workloads.split(","):
        print(name, json.dumps({key: value for key, value in result[name].items() if key != "runs"}))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
