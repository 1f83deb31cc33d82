"""What the service costs: decisions, index memory, and edge + policy + RPC in front of engines that take no time.

    python benchmarks/service_overhead.py [--parts decision,memory,prefix,http] [--json RESULT.json]

decision  Microseconds of one routing decision with all score parts kept, per policy, at 64 and 1,000 instances: a
          prompt of 2,048 tokens (128 blocks, hashes made before), a third of the instances holding a part of its
          prefix. *view* is the picture of the cluster that a decision is made on.
memory    Bytes of a KvIndex with 10^6 blocks, each held by one to three of 8 instances (tracemalloc), the time of
          a match of 128 blocks in it, and of a tick that sweeps after a death.
prefix    Simulated time, so the machine's load does not matter: four production brains with a cache of 4,000 blocks
          each, 64 clients asking 1,200 questions about 48 documents of 3,072 tokens under 4 system prompts. Requests/s
          and share of prompt tokens found in a cache, per policy, and of one instance with all the cache.
http      ``xllm serve`` with timed engines whose steps take no time, so that what a client sees is all overhead. Closed
          loop of keep-alive clients from another process on the same machine: latency of one-token answers, then
          concurrent streams of 64 tokens.

Other work on the machine shows: the load average is stored with the result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.base.clock import MonotonicClock
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.timed import TimedRunner
from xllm.perf.step_time import load_profile
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Instance
from xllm.service.cluster.view import ClusterView
from xllm.service.kv_index import KvIndex
from xllm.service.policy import POLICIES
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.sim.engine import SimEngine
from xllm.sim.events import EventQueue
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.ids import BlockHash
from xllm.types.instance import HealthReport, InstanceInfo, LoadReport, StepCosts
from xllm.types.kv_event import KvEvent, KvEventBatch
from xllm.types.kv_layout import build_attention_layout
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams
from xllm.types.wire import LoadReply

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "xllm" / "assets" / "demo_model"
PROMPT = tuple(range(2048))
HASHES = block_hashes(PROMPT, block_size=16, root=root_hash(block_size=16))
REQUEST = Request(
    id="r", prompt_token_ids=PROMPT, seed=0, tenant="t", block_hashes=HASHES, block_hash_size=16
)
START_S = 120.0


def percentiles(values: list[float], scale: float = 1.0, digits: int = 1) -> dict[str, float]:
    """p50 and p99 of values times ``scale``."""
    ranked = sorted(values)
    return {
        "p50": round(scale * statistics.median(ranked), digits),
        "p99": round(scale * ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))], digits),
    }


def time_calls(call: Callable[[], object], num: int) -> dict[str, float]:
    """Microseconds per call, measured one by one."""
    times = []
    for _ in range(num):
        begin_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin_s)
    return percentiles(times, 1e6)


def build_cluster(num_instances: int) -> Cluster:
    """Connected instances with different loads."""
    rng = random.Random(1)
    cluster = Cluster(MonotonicClock(), stall_timeout_s=1e9)
    for number in range(num_instances):
        info = InstanceInfo(id=f"engine-{number:04}", incarnation="i", address="a", model="m")
        instance = cluster.add(info)
        instance.on_connected(info)
        load = LoadReport(
            num_running=rng.randrange(64),
            num_waiting=rng.randrange(9),
            num_waiting_tokens=rng.randrange(9999),
            step_costs=StepCosts(
                overhead_s=1e-3, row_s=1e-5, token_s=1e-5, weights_s=3e-3, context_s=1e-8, pair_s=1e-10
            ),
        )
        health = HealthReport(state="ready", step=1, layers_done=1, num_unfinished=1, idle_s=0.0)
        instance.on_heartbeat(LoadReply(load=load, health=health))
    return cluster


def measure_decision() -> dict[str, Any]:
    """See the module."""
    found: dict[str, Any] = {}
    for num_instances in (64, 1000):
        cluster = build_cluster(num_instances)
        index = KvIndex()
        for number, instance in enumerate(cluster):
            if number % 3 == 0:
                held = HASHES[: 1 + number % 128]
                index.apply(instance.info.id, KvEventBatch(0, (KvEvent("stored", held),)), is_snapshot=True)
        view = ClusterView(instances=cluster.view().instances, prefixes=index)
        assert len(view.routable()) == num_instances
        row = {
            "view_us": time_calls(cluster.view, 200),
            "match_us": time_calls(lambda i=index: i.match(HASHES), 500),
        }  # type: ignore[misc]
        for name in ("round_robin", "least_loaded", "cache_aware", "slo_aware", "session_affinity"):
            policy: Any = POLICIES.load(name)
            row[f"{name}_us"] = time_calls(lambda p=policy, v=view: p.decide(REQUEST, v), 500)  # type: ignore[misc]
        found[f"{num_instances} instances"] = row
    return found


def measure_memory(num_blocks: int = 1_000_000) -> dict[str, Any]:
    """See the module."""
    rng = random.Random(2)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = KvIndex()
    names = [f"engine-{number}" for number in range(8)]
    sequence = dict.fromkeys(names, 0)
    for name in names:
        index.apply(name, KvEventBatch(0, ()), is_snapshot=True)
    for start in range(0, num_blocks, 1000):
        blocks = tuple(BlockHash(rng.randbytes(16)) for _ in range(1000))
        for name in rng.sample(names, rng.randint(1, 3)):
            sequence[name] += 1
            index.apply(name, KvEventBatch(sequence[name], (KvEvent("stored", blocks),)), is_snapshot=False)
        del start
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert index.num_blocks == num_blocks
    index.apply(
        "engine-0", KvEventBatch(sequence["engine-0"] + 1, (KvEvent("stored", HASHES),)), is_snapshot=False
    )
    assert index.match(HASHES) == {"engine-0": 128.0}
    match_us = time_calls(lambda: index.match(HASHES), 500)
    index.purge("engine-1")
    return {
        "blocks": num_blocks,
        "mb": round(used / 1e6, 1),
        "match_128_blocks_us": match_us,
        "tick_after_a_death_us": time_calls(index.tick, 60),
    }


async def one_answer(session: Any, url: str, model: str, num_tokens: int, is_stream: bool) -> int:
    """One completion; returns the bytes of its body."""
    body = {
        "model": model, "prompt": [5, 6, 7, 8], "max_tokens": num_tokens, "stream": is_stream, "ignore_eos": True,
        "temperature": 0,
    }  # fmt: skip
    async with session.post(f"{url}/v1/completions", json=body) as response:
        raw = await response.read()
        assert response.status == 200, raw
        return len(raw)


async def closed_loop(
    url: str, model: str, concurrency: int, num_requests: int, tokens: int
) -> dict[str, Any]:
    """Keep ``concurrency`` requests in flight; latency of each and the rate of all."""
    import aiohttp

    times: list[float] = []
    left = iter(range(num_requests))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            for _ in left:
                begin_s = time.perf_counter()
                await one_answer(session, url, model, tokens, tokens > 1)
                times.append(time.perf_counter() - begin_s)

        begin_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        wall_s = time.perf_counter() - begin_s
    return {
        "concurrency": concurrency,
        "requests": len(times),
        "latency_ms": percentiles(times, 1e3, 2),
        "requests_per_s": round(len(times) / wall_s, 1),
        "tokens_per_s": round(len(times) * tokens / wall_s, 1),
    }


def measure_http(policy: str, flags: list[str]) -> dict[str, Any]:
    """See the module."""
    command = [
        sys.executable, "-m", "xllm.cli.main", "serve", str(MODEL), "--port", "0", "--executor", "timed:instant",
        "--max-model-len", "256", "--served-model-name", "m", "--routing-policy", policy, *flags,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        url, begin_s = "", time.monotonic()
        for line in process.stdout:
            found = re.search(r"(http://[\d.]+:\d+)", line)
            if found:
                url = found[1]
                break
            assert time.monotonic() < begin_s + START_S, "xllm serve did not start"
        assert url, "xllm serve ended"
        rows = [
            ("warm up", 4, 200, 1),
            ("one client, one token", 1, 500, 1),
            ("32 clients, one token", 32, 3000, 1),
            ("500 streams of 64 tokens", 500, 1000, 64),
        ]
        return {
            name: asyncio.run(closed_loop(url, "m", concurrency, num, tokens))
            for name, concurrency, num, tokens in rows
        }
    finally:
        process.terminate()
        process.communicate(timeout=60)


class SimInstance:
    """One production brain on the event queue, and what the service knows of it."""

    def __init__(
        self, name: str, events: EventQueue, num_blocks: int, deliver: Callable[[str, Any], None]
    ) -> None:
        profile = load_profile("h200-8b")
        layout = build_attention_layout(
            block_size=16, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
        )
        limits = SchedulerLimits(
            max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=8192, watermark=0.01
        )
        self.core = build_brain(
            layout=layout, num_blocks=[num_blocks], limits=limits, vocab_size=32_000, clock=events.clock
        )
        runner = TimedRunner(profile, vocab_size=32_000, num_layers=1)
        self.engine = SimEngine(self.core, runner, events, on_outputs=lambda outputs: deliver(name, outputs))
        info = InstanceInfo(id=name, incarnation="i", address="a", model="m")
        self.instance = Instance(info, events.clock, 1e9)
        self.instance.on_connected(info)
        self.sequence = 0

    def report(self) -> None:
        """What a heartbeat brings."""
        health = HealthReport(state="ready", step=1, layers_done=1, num_unfinished=0, idle_s=0.0)
        self.instance.on_heartbeat(LoadReply(load=self.core.load(), health=health))


def simulate_prefixes(policy_name: str, num_instances: int, num_blocks: int) -> dict[str, Any]:
    """Closed loop of 64 clients over a prefix tree: 48 documents of 3,072 tokens under one of 4 system prompts."""
    rng, events, feeds = random.Random(4), EventQueue(), PrefixFeeds()
    index = feeds.index
    open_requests: Counter[str] = Counter()
    policy: Any = POLICIES.load(policy_name)
    systems = [[rng.randrange(32_000) for _ in range(1024)] for _ in range(4)]
    documents = [systems[i % 4] + [rng.randrange(32_000) for _ in range(3072)] for i in range(48)]
    left = [
        (f"r{i}", rng.choice(documents) + [rng.randrange(32_000) for _ in range(64)]) for i in range(1200)
    ]
    root, done, end_s = root_hash(block_size=16), 0, 0.0
    nodes: dict[str, SimInstance] = {}

    def deliver(name: str, outputs: Any) -> None:
        nonlocal done, end_s
        node = nodes[name]
        found = node.core.take_kv_events()
        if found:
            node.sequence += 1
            assert index.apply(name, KvEventBatch(node.sequence, tuple(found)), is_snapshot=False)
        feeds.on_outputs(outputs)
        for output in outputs:
            if output.finish_reason:
                done, end_s = done + 1, events.clock.now()
                open_requests[name] -= 1
                events.after(0.0, send)

    def send() -> None:
        if not left:
            return
        name, ids = left.pop()
        hashes = block_hashes(ids, block_size=16, root=root)
        request = Request(
            id=name, prompt_token_ids=tuple(ids), seed=1, block_hashes=hashes, block_hash_size=16,
            sampling=SamplingParams(max_tokens=16, temperature=0.0),
        )  # fmt: skip
        for key, each in nodes.items():
            each.instance.num_inflight = open_requests[key]
            each.instance.num_pending_tokens = feeds.pending_tokens[key]
            each.instance.num_pending_prompt_tokens = feeds.pending_prompt_tokens[key]
        view = ClusterView(instances=tuple(n.instance.view() for n in nodes.values()), prefixes=index)
        decision = policy.decide(request, view)
        node = nodes[decision.route.prefill]
        node.instance.num_routed += 1
        open_requests[decision.route.prefill] += 1
        feeds.on_routed(request, decision.route.prefill, decision.chosen.parts.get("hit_tokens"))
        refusal = node.engine.submit(request)
        assert refusal is None, refusal

    def beat() -> None:
        for node in nodes.values():
            node.report()
        feeds.tick()
        if done < 1200:
            events.after(0.5, beat)

    for number in range(num_instances):
        nodes[f"e{number}"] = SimInstance(f"e{number}", events, num_blocks, deliver)
        index.apply(f"e{number}", KvEventBatch(0, ()), is_snapshot=True)
    beat()
    for client in range(64):
        events.at(0.001 * client, send)
    events.run()
    assert done == 1200
    loads = [node.core.load() for node in nodes.values()]
    queried = sum(load.prefix_query_tokens for load in loads)
    return {
        "requests_per_s": round(done / end_s, 2),
        "predicted_over_actual": round(
            sum(feeds.predicted_tokens.values()) / max(1, sum(feeds.actual_tokens.values())), 3
        ),
        "hit_rate": round(sum(load.prefix_hit_tokens for load in loads) / queried, 4),
    }


def measure_prefix() -> dict[str, Any]:
    """See the module."""
    found: dict[str, Any] = {
        name: simulate_prefixes(name, 4, 4000) for name in ("round_robin", "least_loaded", "cache_aware")
    }
    found["one instance with the cache of four"] = simulate_prefixes("round_robin", 1, 16_000)
    ratio = found["cache_aware"]["requests_per_s"] / found["round_robin"]["requests_per_s"]
    found["cache_aware over round_robin"] = round(ratio, 2)
    return found


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", default="decision,memory,prefix,http")
    parser.add_argument("--policy", default="cache_aware")
    parser.add_argument("--serve-flags", default="", help="more flags of xllm serve, separated by spaces")
    parser.add_argument("--json")
    args = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "decision": measure_decision,
        "memory": measure_memory,
        "prefix": measure_prefix,
        "http": lambda: measure_http(args.policy, args.serve_flags.split()),
    }
    result: dict[str, Any] = {"environment": describe()}
    for name in args.parts.split(","):
        result[name] = parts[name]()
        print(name, json.dumps(result[name], indent=2), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
