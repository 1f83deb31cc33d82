"""Routing policies in simulated time: production brains, policies and KV index; the machine's load does not matter.

    python benchmarks/routing_sim.py [--parts prefix,slo,tenants] [--miss-factors 1,2,4] [--json RESULT.json]

prefix  Throughput of 4 instances (Qwen3-8B on one H200 by roofline, 4,000 blocks of 16 tokens each), closed loop of 64
        clients, and the share of prompt tokens found in a cache. Workloads, fixed before any tuning:
          documents   1,200 questions of 64 tokens about 48 documents of 3,072 tokens under 4 system prompts of 1,024
          chats       96 conversations of 12 turns: a shared system prompt of 512 tokens, then 160 new tokens per turn
          deep        1,200 questions in a tree of 2 roots (2,048), 8 branches (1,024), 96 leaves (1,536), leaves drawn
                      by Zipf's law
          control     1,200 prompts that share nothing (log-normal, median 1,200, 200 to 4,000): the cache term's cost
        ``one`` is one instance with the cache of all four (and a quarter of the compute).
slo     Share of offered requests that keep their budgets, open loop (Poisson), 80 % short prompts (log-normal, median
        300, 32 to 2,000; first token 500 ms), 20 % long ones (median 6,000, 2,000 to 16,000; 3 s), outputs log-normal
        (median 100, 8 to 1,024), 50 ms per output token. 4 equal instances, and 2 with 2 of a third of the speed. Load
        1 is the rate at which one instance finishes requests that all wait at time 0, times the speeds. Engines: first
        come, first served, without refusals, so that only routing differs; their step-time models start from a prior
        that is wrong on purpose and learn.
tenants A tenant that sends 1,500 short requests at once, and another one that sends 5 per second: time to the first
        token of both, on 4 instances of 32 rows, where engines take all, and where what is beyond 8 waiting requests
        per instance waits in the service, first come, first served or fair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.api.backend import OutputSink
from xllm.base.waits import WaitTable
from xllm.engine.brain import build_brain
from xllm.engine.scheduler.limits import SchedulerLimits, SloOptions
from xllm.engine.timed import TimedRunner
from xllm.errors import XllmError
from xllm.perf.learned import LearnedStepTime
from xllm.perf.step_time import PROFILES, StepTimeProfile
from xllm.service.cluster.instance import Instance
from xllm.service.cluster.view import ClusterView
from xllm.service.hold_queue import HoldLimits
from xllm.service.holding import Holding
from xllm.service.policy import POLICIES, cache_aware
from xllm.service.policy.score import Policy
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.sim.engine import SimEngine
from xllm.sim.events import EventQueue
from xllm.sim.report import RequestRecord, percentile
from xllm.sim.trace import EOS_TOKEN
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.instance import HealthReport, InstanceInfo
from xllm.types.kv_event import KvEventBatch
from xllm.types.kv_layout import build_attention_layout
from xllm.types.request import Request, SloBudgets
from xllm.types.sampling import SamplingParams
from xllm.types.wire import LoadReply
from xllm.workload.lengths import LogNormal

DEVICE = PROFILES["h200-8b"]
VOCAB, BLOCK, BEAT_S = 32_000, 16, 0.5
ROOT = root_hash(block_size=BLOCK)
SHORT, LONG = LogNormal(300, 0.8, 32, 2000), LogNormal(6000, 0.5, 2000, 16_000)
OUTPUTS = LogNormal(100, 0.8, 8, 1024)
SHORT_TTFT_MS, LONG_TTFT_MS, TPOT_MS = 500.0, 3000.0, 50.0


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """One simulated instance."""

    device: StepTimeProfile = DEVICE
    num_blocks: int = 4000
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    learns: bool = False


def slowed(factor: float) -> StepTimeProfile:
    """The device at a fraction of its speed."""
    return replace(
        DEVICE, name=f"slow {factor}", peak_flops=DEVICE.peak_flops / factor,
        bandwidth_bytes_s=DEVICE.bandwidth_bytes_s / factor, overhead_s=DEVICE.overhead_s * factor,
    )  # fmt: skip


class Node:
    """One production brain on the event queue, and what the service knows of it."""

    def __init__(
        self, name: str, spec: NodeSpec, events: EventQueue, deliver: Callable[[str, Any], None],
        lengths: dict[str, int],
    ) -> None:  # fmt: skip
        layout = build_attention_layout(
            block_size=BLOCK, num_layers=1, num_kv_heads=1, head_dim=2, dtype="float32"
        )
        limits = SchedulerLimits(
            max_num_seqs=spec.max_num_seqs, max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=20_000, max_num_queued_reqs=0, watermark=0.01,
        )  # fmt: skip
        more: dict[str, Any] = {}
        if spec.learns:
            wrong = replace(
                DEVICE, name="wrong", peak_flops=DEVICE.peak_flops / 1.7,
                bandwidth_bytes_s=DEVICE.bandwidth_bytes_s * 1.5, overhead_s=DEVICE.overhead_s * 3,
            )  # fmt: skip
            more = {
                "times": LearnedStepTime(wrong),
                "slo": SloOptions(token_budget=False, early_rejection=False),
            }
        self.core = build_brain(
            layout=layout, num_blocks=[spec.num_blocks], limits=limits, vocab_size=VOCAB, clock=events.clock,
            **more,
        )  # fmt: skip
        runner = TimedRunner(
            spec.device, vocab_size=VOCAB, num_layers=1, output_length=lambda r, _choice: lengths[r.id]
        )
        self.engine = SimEngine(self.core, runner, events, on_outputs=lambda outputs: deliver(name, outputs))
        info = InstanceInfo(
            id=name, incarnation="i", address="a", model="m", max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
        )  # fmt: skip
        self.instance = Instance(info, events.clock, 1e9)
        self.instance.on_connected(info)
        self.sequence = 0

    def report(self) -> None:
        """What a heartbeat brings."""
        health = HealthReport(state="ready", step=1, layers_done=1, num_unfinished=0, idle_s=0.0)
        self.instance.on_heartbeat(LoadReply(load=self.core.load(), health=health))


class Simulation:
    """Instances under one policy; requests come at times (``at_s``) or each when another one has ended."""

    def __init__(self, policy: Policy, specs: Sequence[NodeSpec], hold: HoldLimits | None = None) -> None:
        self.events, self.feeds = EventQueue(), PrefixFeeds()
        self.records: dict[str, RequestRecord] = {}
        self.routed: Counter[str] = Counter()
        self.on_end: Callable[[str], None] = lambda _name: None
        self._policy = policy
        self._lengths: dict[str, int] = {}
        self._open: Counter[str] = Counter()
        self._num_open = 0
        self._num_coming = 0
        self.nodes: dict[str, Node] = {}
        self._tenants: dict[str, str] = {}
        self._holding = Holding(
            hold or HoldLimits(), clock=self.events.clock, waits=WaitTable(self.events.clock), look=self._look,
            begin=self._begin, refuse=self._refuse,
        )  # fmt: skip
        for number, spec in enumerate(specs):
            name = f"e{number}"
            self.nodes[name] = Node(name, spec, self.events, self._deliver, self._lengths)
            self.feeds.index.apply(name, KvEventBatch(0, ()), is_snapshot=True)

    def send(self, request: Request, num_output: int) -> None:
        """Route and submit it now, or when an instance has room."""
        self._lengths[request.id] = num_output
        self._tenants[request.id] = request.tenant
        self._num_open += 1
        self.records[request.id] = RequestRecord(self.events.clock.now(), request.num_prompt_tokens)
        self._holding.take(request, NoSink(), self._look())

    def _look(self) -> ClusterView:
        self._count()
        instances = tuple(n.instance.view() for n in self.nodes.values())
        return ClusterView(instances=instances, prefixes=self.feeds.index)

    def _count(self) -> None:
        for key, each in self.nodes.items():
            each.instance.on_counted(
                num_inflight=self._open[key],
                num_pending_tokens=self.feeds.pending_tokens[key],
                num_pending_prompt_tokens=self.feeds.pending_prompt_tokens[key],
            )

    def _refuse(self, name: str, error: XllmError) -> None:
        raise AssertionError(f"{name} was refused: {error.message}")

    def _begin(self, request: Request, sink: OutputSink, view: ClusterView) -> None:
        decision = self._policy.decide(request, view)
        assert decision is not None
        name = decision.route.prefill
        node = self.nodes[name]
        node.instance.on_routed()
        self.routed[name] += 1
        self._open[name] += 1
        num_new = request.num_prompt_tokens - decision.chosen.parts.get("hit_tokens", 0.0)
        self._holding.queue.charge(request.tenant, prompt_tokens=num_new)
        self.feeds.on_routed(request, name, decision.chosen.parts.get("hit_tokens"))
        refusal = node.engine.submit(request)
        assert refusal is None, refusal

    def run(self, arrivals: Sequence[tuple[float, Request, int]]) -> None:
        """All of it to the end."""
        self._num_coming = len(arrivals)
        for at_s, request, num_output in arrivals:
            self.events.at(at_s, lambda r=request, n=num_output: self._arrive(r, n))  # type: ignore[misc]
        self._beat()
        self.events.run()
        assert not self._num_open

    def _arrive(self, request: Request, num_output: int) -> None:
        self._num_coming -= 1
        self.send(request, num_output)

    def _beat(self) -> None:
        self._count()
        for node in self.nodes.values():
            node.report()
        self._holding.pump()
        self.feeds.tick()
        if self._num_open or self._num_coming:
            self.events.after(BEAT_S, self._beat)

    def _deliver(self, name: str, outputs: Any) -> None:
        node = self.nodes[name]
        found = node.core.take_kv_events()
        if found:
            node.sequence += 1
            assert self.feeds.index.apply(name, KvEventBatch(node.sequence, tuple(found)), is_snapshot=False)
        self.feeds.on_outputs(outputs)
        for output in outputs:
            self.records[output.request_id].add(output, self.events.clock.now())
            tenant = self._tenants[output.request_id]
            self._holding.queue.charge(tenant, output_tokens=len(output.token_ids))
            if output.finish_reason:
                self._open[name] -= 1
                self._num_open -= 1
                self.events.after(0.0, lambda n=output.request_id: self.on_end(n))  # type: ignore[misc]
                self._holding.pump()


class NoSink:
    """Outputs are taken as the engines give them."""

    def deliver(self, outputs: Any) -> bool:
        return True


def make_request(name: str, ids: Sequence[int], **fields: Any) -> Request:
    return Request(
        id=name, prompt_token_ids=tuple(ids), seed=1, block_hashes=block_hashes(ids, block_size=BLOCK, root=ROOT),
        block_hash_size=BLOCK, sampling=SamplingParams(max_tokens=1024, temperature=0.0),
        eos_token_ids=(EOS_TOKEN,), **fields,
    )  # fmt: skip


# -- prefix workloads: lists of conversations; a conversation's next request comes when the one before has ended --


def draw(rng: random.Random, num: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(num)]


def documents(rng: random.Random) -> list[list[list[int]]]:
    systems = [draw(rng, 1024) for _ in range(4)]
    texts = [systems[i % 4] + draw(rng, 3072) for i in range(48)]
    return [[rng.choice(texts) + draw(rng, 64)] for _ in range(1200)]


def chats(rng: random.Random) -> list[list[list[int]]]:
    system, found = draw(rng, 512), []
    for _ in range(96):
        turns, history = [], list(system)
        for _ in range(12):
            history = history + draw(rng, 160)
            turns.append(history)
        found.append(turns)
    return found


def deep(rng: random.Random) -> list[list[list[int]]]:
    roots = [draw(rng, 2048) for _ in range(2)]
    branches = [roots[i % 2] + draw(rng, 1024) for i in range(8)]
    leaves = [branches[i % 8] + draw(rng, 1536) for i in range(96)]
    weights = [1.0 / (rank + 1) for rank in range(96)]
    rng.shuffle(leaves)
    return [[rng.choices(leaves, weights)[0] + draw(rng, 64)] for _ in range(1200)]


def control(rng: random.Random) -> list[list[list[int]]]:
    lengths = LogNormal(1200, 0.6, 200, 4000)
    return [[draw(rng, lengths.draw(rng))] for _ in range(1200)]


WORKLOADS = {"documents": documents, "chats": chats, "deep": deep, "control": control}
NUM_CLIENTS = 64


def run_prefix(policy: Policy, workload: str, specs: Sequence[NodeSpec], seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    left = WORKLOADS[workload](rng)
    rng.shuffle(left)
    simulation = Simulation(policy, specs)
    talks: dict[str, list[list[int]]] = {}
    numbers = itertools.count()

    def ask(turns: list[list[int]]) -> None:
        name = f"r{next(numbers)}"
        talks[name] = turns[1:]
        simulation.send(make_request(name, turns[0]), 16)

    def next_one(ended: str) -> None:
        turns = talks.pop(ended)
        if turns or left:
            ask(turns or left.pop())

    simulation.on_end = next_one
    for client in range(NUM_CLIENTS):
        simulation.events.at(0.001 * client, lambda: ask(left.pop()))
    simulation._num_coming = 1  # heartbeats go on until everybody is served
    simulation.events.at(0.1, lambda: setattr(simulation, "_num_coming", 0))
    simulation._beat()
    simulation.events.run()
    loads = [node.core.load() for node in simulation.nodes.values()]
    feeds = simulation.feeds
    actual = sum(feeds.actual_tokens.values())
    return {
        "requests_per_s": round(
            len(simulation.records) / max(r.last_token_s or 0.0 for r in simulation.records.values()), 2
        ),
        "hit_rate": round(
            sum(load.prefix_hit_tokens for load in loads) / sum(load.prefix_query_tokens for load in loads), 4
        ),
        "predicted_over_actual": round(sum(feeds.predicted_tokens.values()) / actual, 3) if actual else None,
    }


def measure_prefix(factors: Sequence[float], seeds: int) -> dict[str, Any]:
    """See the module."""
    four = [NodeSpec()] * 4
    default = cache_aware.MISS_FACTOR
    found: dict[str, Any] = {}
    for workload in WORKLOADS:
        rows: dict[str, Any] = {}
        for seed in range(seeds):
            cells = {
                n: run_prefix(load_policy(n), workload, four, seed) for n in ("round_robin", "least_loaded")
            }
            if workload != "control":
                cells["one"] = run_prefix(
                    load_policy("round_robin"), workload, [NodeSpec(num_blocks=16_000)], seed
                )
            for factor in factors:
                cache_aware.MISS_FACTOR = factor
                cells[f"cache_aware x{factor:g}"] = run_prefix(
                    load_policy("cache_aware"), workload, four, seed
                )
            cache_aware.MISS_FACTOR = default
            for name, cell in cells.items():
                rows.setdefault(name, []).append(cell)
        found[workload] = summarise(rows)
        print(workload, json.dumps(found[workload]), flush=True)
    return {"miss_factor": default, "seeds": seeds, **found}


def summarise(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, and throughput next to round_robin and least_loaded."""

    def mean(name: str, key: str) -> float:
        return sum(cell[key] for cell in rows[name]) / len(rows[name])

    return {
        name: {
            "requests_per_s": round(mean(name, "requests_per_s"), 2),
            "hit_rate": round(mean(name, "hit_rate"), 4),
            "over_round_robin": round(
                mean(name, "requests_per_s") / mean("round_robin", "requests_per_s"), 3
            ),
            "over_least_loaded": round(
                mean(name, "requests_per_s") / mean("least_loaded", "requests_per_s"), 3
            ),
        }
        for name in rows
    }


def load_policy(name: str) -> Policy:
    policy: Any = POLICIES.load(name)
    return policy


# -- latency budgets --

CLUSTERS = {
    "4 equal": [NodeSpec(num_blocks=25_000, max_num_seqs=256, max_num_batched_tokens=8192, learns=True)] * 4,
    "2 and 2 of a third": [
        NodeSpec(num_blocks=25_000, max_num_seqs=256, max_num_batched_tokens=8192, learns=True, device=device)
        for device in (DEVICE, DEVICE, slowed(3.0), slowed(3.0))
    ],
}


def build_slo_trace(num: int, rate_per_s: float, seed: int) -> list[tuple[float, Request, int]]:
    rng, now_s, trace = random.Random(seed), 0.0, []
    for index in range(num):
        now_s += 0.0 if math.isinf(rate_per_s) else rng.expovariate(rate_per_s)
        is_short = rng.random() < 0.8
        ids = (index % 31_000 + 1, *range(1, (SHORT if is_short else LONG).draw(rng)))
        slo = SloBudgets(ttft_ms=SHORT_TTFT_MS if is_short else LONG_TTFT_MS, tpot_ms=TPOT_MS)
        name = f"{'short' if is_short else 'long'}{index}"
        request = Request(
            id=name,
            prompt_token_ids=ids,
            seed=index,
            sampling=SamplingParams(max_tokens=1024),
            slo=slo,
            eos_token_ids=(EOS_TOKEN,),
        )
        trace.append((now_s, request, OUTPUTS.draw(rng)))
    return trace


def attains(name: str, record: RequestRecord) -> bool:
    ttft_ms = SHORT_TTFT_MS if name.startswith("short") else LONG_TTFT_MS
    in_time = record.ttft_s * 1e3 <= ttft_ms and record.tpot_s * 1e3 <= TPOT_MS
    return record.is_complete and in_time


def run_slo(policy: Policy, cluster: str, num: int, rate_per_s: float, seed: int) -> dict[str, Any]:
    simulation = Simulation(policy, CLUSTERS[cluster])
    simulation.run(build_slo_trace(num, rate_per_s, seed))
    records = simulation.records
    short = {n: r for n, r in records.items() if n.startswith("short")}
    long = {n: r for n, r in records.items() if n.startswith("long")}
    return {
        "attainment": sum(attains(n, r) for n, r in records.items()) / num,
        "attainment_short": sum(attains(n, r) for n, r in short.items()) / max(1, len(short)),
        "attainment_long": sum(attains(n, r) for n, r in long.items()) / max(1, len(long)),
        "ttft_p99_s": percentile((r.ttft_s for r in records.values()), 99),
        "tpot_p99_s": percentile((r.tpot_s for r in records.values()), 99),
        "routed": dict(sorted(simulation.routed.items())),
    }


def measure_capacity(num: int) -> float:
    """Requests per second that one instance of full speed finishes when all of them wait."""
    simulation = Simulation(load_policy("round_robin"), CLUSTERS["4 equal"][:1])
    simulation.run(build_slo_trace(num, math.inf, 0))
    ends = sorted(r.last_token_s or 0.0 for r in simulation.records.values())
    begin_s, end_s = 0.1 * ends[-1], 0.8 * ends[-1]
    return sum(begin_s < at_s <= end_s for at_s in ends) / (end_s - begin_s)


def measure_slo(num: int, seeds: int, loads: Sequence[float], policies: Sequence[str]) -> dict[str, Any]:
    """See the module."""
    found: dict[str, Any] = {"requests": num, "seeds": seeds}
    one = measure_capacity(num // 3)
    for cluster in CLUSTERS:
        capacity = one * sum(spec.device.peak_flops / DEVICE.peak_flops for spec in CLUSTERS[cluster])
        found[cluster] = {"capacity_req_s": round(capacity, 2)}
        for load in loads:
            for name in policies:
                cells = [
                    run_slo(load_policy(name), cluster, num, load * capacity, 1 + s) for s in range(seeds)
                ]
                row = {
                    key: round(sum(cell[key] for cell in cells) / seeds, 4)
                    for key in cells[0]
                    if key != "routed"
                }
                row["routed"] = cells[0]["routed"]
                found[cluster].setdefault(f"load {load:g}", {})[name] = row
                print(cluster, load, name, json.dumps(row), flush=True)
    return found


# -- tenants --


def build_flood(seed: int) -> list[tuple[float, Request, int]]:
    """At time 0, 1,500 requests of one tenant; from 1 s on, 5 requests per second of another one, for 20 s."""
    rng, trace = random.Random(seed), []
    for index in range(1600):
        is_flood = index < 1500
        name = f"{'flood' if is_flood else 'small'}{index}"
        ids = (index % 31_000 + 1, *range(1, SHORT.draw(rng)))
        request = Request(
            id=name, prompt_token_ids=ids, seed=index, sampling=SamplingParams(max_tokens=1024),
            eos_token_ids=(EOS_TOKEN,), tenant="flood" if is_flood else "small",
        )  # fmt: skip
        trace.append((0.0 if is_flood else 1.0 + (index - 1500) / 5.0, request, OUTPUTS.draw(rng)))
    return trace


def measure_tenants() -> dict[str, Any]:
    """See the module."""
    found: dict[str, Any] = {}
    nodes = [NodeSpec(num_blocks=25_000, max_num_seqs=32, max_num_batched_tokens=2048)] * 4
    for name, limits in (
        ("engines take all", HoldLimits()),
        ("fcfs", HoldLimits(max_waiting_per_instance=8, order="fcfs")),
        ("tenant_fair", HoldLimits(max_waiting_per_instance=8)),
    ):
        simulation = Simulation(load_policy("least_loaded"), nodes, limits)
        simulation.run(build_flood(1))
        records = simulation.records
        row = {"wall_s": round(max(r.last_token_s or 0.0 for r in records.values()), 2)}
        for tenant in ("flood", "small"):
            waits = [r.ttft_s for n, r in records.items() if n.startswith(tenant)]
            row |= {
                f"{tenant}_ttft_p50_s": round(percentile(waits, 50), 3),
                f"{tenant}_ttft_p99_s": round(percentile(waits, 99), 3),
            }
        found[name] = row
        print("tenants", name, json.dumps(row), flush=True)
    return found


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", default="prefix,slo,tenants")
    parser.add_argument("--miss-factors", default=f"{cache_aware.MISS_FACTOR:g}")
    parser.add_argument("--requests", type=int, default=2000, help="of a run of the part slo")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--loads", default="0.6,0.75,0.9")
    parser.add_argument("--policies", default="round_robin,least_loaded,slo_aware", help="of the part slo")
    parser.add_argument("--json")
    args = parser.parse_args()
    result: dict[str, Any] = {"environment": describe()}
    if "prefix" in args.parts.split(","):
        result["prefix"] = measure_prefix([float(f) for f in args.miss_factors.split(",")], args.seeds)
    if "slo" in args.parts.split(","):
        loads = [float(load) for load in args.loads.split(",")]
        result["slo"] = measure_slo(args.requests, args.seeds, loads, args.policies.split(","))
    if "tenants" in args.parts.split(","):
        result["tenants"] = measure_tenants()
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
