"""What the service costs: decisions, index memory, and what edge + policy + RPC add to every token and request.

    python benchmarks/service_overhead.py [--parts decision,memory,saturation,routers] [--install] [--json RESULT.json]

decision    Microseconds of one routing decision with all score parts kept, per policy, at 64 and 1,000 instances: a
            request of 2,048 tokens (128 blocks, hashes made before), a third of the instances holding a part of its
            prefix. The picture of the cluster is part of it: one instance has changed since the decision before.
memory      Bytes of a KvIndex with 10^6 blocks, each held by one to three of 8 instances (tracemalloc), the time of
            a match of 128 blocks in it, and of a tick that sweeps after a death. Then, in CPU time, what one instance's
            snapshot of 10^6 blocks in runs of 128 costs the loop of the service: its decoding (one piece), its way into
            the index at once, and the longest of the slices in which it really goes there.
saturation  ``xllm service`` over one timed engine whose steps take no time, closed loops: answers of one token, then
            500 streams. Rates in wall time, which client and engine share, and per second of the service's CPU.
routers     500 streams over --instances instances with a step of --step-ms, through each router of --routers in turn,
            --rounds times: from the moment an instance hands over a token until the client has read it; CPU of the
            router per token. One clock, the machine's monotonic one. For xLLM also what it adds to the first token:
            the request's way to the engine and the first token's way back.

A step's tokens come at once and leave one by one, so half of a step's streams times the cost of a token is a median
that no router can beat; ``direct``, without any router, shows the client's own part of it.

Comparison. xLLM does more: it tokenises, keeps the books of failover, turns ids into text; its engines speak its RPC.
The peers pass on the bytes (sglang-router, compiled) or parse and write anew (LiteLLM) what a bare HTTP backend made
ready: they get the cheapest upstream there is, and its work, which is part of ``router_us_per_token`` here, is not
counted for them. A bare backend stamps a token when it writes it, one after the other; an engine hands a whole step
over at once, so that the wait of its last token behind its first counts for xLLM only. All have one process;
sglang-router has threads for all cores. --install puts them into virtual environments under --work, once; a peer that
is not there is reported as such.

Other work on the machine shows: the load average is stored with the result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cpu_peers.install import InstallFailed
from benchmarks.environment import describe
from benchmarks.router_load.client import Answer
from benchmarks.router_load.paced import Window, read_notes, run_short, run_streams
from benchmarks.router_load.routers import PACKAGES, Running, install, running
from xllm.base.clock import MonotonicClock
from xllm.base.garbage import collect_what_serving_makes
from xllm.rpc.codec import Codec, build_service_codec
from xllm.rpc.frame import HEADER
from xllm.service.cluster.cluster import Cluster
from xllm.service.cluster.instance import Patience
from xllm.service.cluster.view import ClusterView
from xllm.service.kv_index import KvIndex
from xllm.service.policy import POLICIES
from xllm.service.prefix_feeds import PrefixFeeds
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.ids import BlockHash
from xllm.types.instance import HealthReport, InstanceInfo, LoadReport, StepCosts
from xllm.types.kv_event import KvEvent, KvEventBatch
from xllm.types.request import Request
from xllm.types.wire import KvEvents, LoadReply

ROOT = Path(__file__).resolve().parent.parent
PROMPT = tuple(range(2048))
HASHES = block_hashes(PROMPT, block_size=16, root=root_hash(block_size=16))
REQUEST = Request(
    id="r", prompt_token_ids=PROMPT, seed=0, tenant="t", block_hashes=HASHES, block_hash_size=16
)
WARM_S, MEASURE_S = 5.0, 7.0


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
    cluster = Cluster(MonotonicClock(), stall_timeout_s=1e9, patience=Patience(suspect_after_s=1e9))
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
        assert len(cluster.view().routable()) == num_instances
        collect_what_serving_makes()
        row = {
            "view_us": time_calls(look_again(cluster, index), 500),
            "match_us": time_calls(lambda i=index: i.match(HASHES), 500),  # type: ignore[misc]
        }
        for name in ("round_robin", "least_loaded", "cache_aware", "slo_aware", "session_affinity"):
            policy: Any = POLICIES.load(name)
            look = look_again(cluster, index)
            row[f"{name}_us"] = time_calls(lambda p=policy, v=look: p.decide(REQUEST, v()), 500)  # type: ignore[misc]
        found[f"{num_instances} instances"] = row
    return found


def look_again(cluster: Cluster, index: KvIndex) -> Callable[[], ClusterView]:
    """Sends a request to one instance after the other, and looks."""
    instances = itertools.cycle(list(cluster))

    def look() -> ClusterView:
        next(instances).on_routed()
        return ClusterView(instances=cluster.pictures(), prefixes=index)

    return look


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
        "snapshot": measure_snapshot(),
    }


def cpu_ms(call: Callable[[], object]) -> float:
    """Milliseconds of CPU that a call takes."""
    begin_s = time.process_time()
    call()
    return 1e3 * (time.process_time() - begin_s)


def measure_snapshot(num_blocks: int = 1_000_000, tries: int = 3) -> dict[str, Any]:
    """See the module, ``memory``: medians of some tries, and of the slices the longest of all."""
    rng = random.Random(3)
    runs = [tuple(BlockHash(rng.randbytes(16)) for _ in range(128)) for _ in range(num_blocks // 128)]
    batch = KvEventBatch(1, tuple(KvEvent("stored", run) for run in runs))
    frame, codec = bytearray(), build_service_codec()
    Codec[Any, Any](KvEvents).append_frame(frame, 0, KvEvents(batch=batch, is_snapshot=True), 1 << 30)
    body = memoryview(frame)[HEADER.size :]
    del batch, runs
    collect_what_serving_makes()
    rows: dict[str, list[float]] = {"decode_ms": [], "at_once_ms": [], "slices_ms": []}
    longest = 0.0
    for _ in range(tries):
        found: list[KvEvents] = []
        rows["decode_ms"].append(cpu_ms(lambda into=found: into.append(codec.decode(body))))  # type: ignore[misc]
        index = KvIndex()
        rows["at_once_ms"].append(
            cpu_ms(lambda i=index, f=found: i.apply("e", f[0].batch, is_snapshot=True))  # type: ignore[misc]
        )
        del index
        feeds = PrefixFeeds()
        slices = [cpu_ms(lambda f=feeds, e=found: f.take_events("e", e[0]))]  # type: ignore[misc]
        while feeds.has_backlog:
            slices.append(cpu_ms(feeds.apply_slice))
        assert feeds.index.num_blocks == num_blocks // 128 * 128
        rows["slices_ms"].append(sum(slices))
        longest = max(longest, *slices)
    medians = {name: round(statistics.median(values), 1) for name, values in rows.items()}
    return {
        "blocks": num_blocks,
        "frame_mb": round(len(body) / 1e6, 1),
        **medians,
        "longest_slice_ms": round(longest, 1),
    }


def summarise(answers: list[Answer], window: Window) -> dict[str, Any]:
    """Rates and CPU of a window."""
    num = sum(window.begin_s <= at_s < window.end_s for answer in answers for _, at_s in answer.tokens)
    router_s, upstream_s, client_s = window.cpu_s
    return {
        "tokens_per_s": round(num / (window.end_s - window.begin_s)),
        "tokens_per_router_cpu_s": round(num / router_s) if router_s else None,
        "router_us_per_token": round(1e6 * router_s / num, 1),
        "upstream_us_per_token": round(1e6 * upstream_s / num, 1),
        "client_us_per_token": round(1e6 * client_s / num, 1),
    }


def summarise_short(answers: list[Answer], wall_s: float, cpu_s: float) -> dict[str, Any]:
    """Of answers of one token."""
    return {
        "requests_per_s": round(len(answers) / wall_s),
        "requests_per_router_cpu_s": round(len(answers) / cpu_s) if cpu_s else None,
        "latency_ms": percentiles([answer.done_s - answer.sent_s for answer in answers], 1e3, 2),
    }


def measure_saturation(flags: list[str]) -> dict[str, Any]:
    """See the module."""
    with running("xllm", num_instances=1, step_s=0.0, work=ROOT, flags=flags) as router:
        uvloop.run(run_short(router, num_clients=4, seconds=0.5))  # warm
        found = {
            f"{num_clients} clients, one token": summarise_short(
                *uvloop.run(run_short(router, num_clients=num_clients, seconds=3.0))
            )
            for num_clients in (1, 32)
        }
        streams = uvloop.run(run_streams(router, run="s", num_streams=500, warm_s=3.0, measure_s=5.0))
        found["500 streams"] = summarise(*streams)
    return found


def added_s(router: Running, answers: list[Answer], window: Window) -> tuple[list[float], list[float]]:
    """What was added to each token of the window, and to each first token whose request was sent in it."""
    if not router.notes:
        return [
            at_s - stamp_s
            for answer in answers
            for stamp_s, at_s in answer.tokens
            if window.begin_s <= at_s < window.end_s
        ], []
    router.end_engines()
    accepted, handed = read_notes(router.notes)
    tokens, firsts = [], []
    for answer in answers:
        request_id = f"chatcmpl-{answer.key}"
        ways = [(at_s, at_s - handed[request_id, int(number)]) for number, at_s in answer.tokens]
        tokens += [way_s for at_s, way_s in ways if window.begin_s <= at_s < window.end_s]
        if ways and window.begin_s <= answer.sent_s < window.end_s:
            firsts.append(accepted[request_id] - answer.sent_s + ways[0][1])
    return tokens, firsts


def measure_router(name: str, args: argparse.Namespace) -> tuple[list[dict[str, Any]], Any]:
    """One turn of one router: its figures, and what it added to tokens and first tokens."""
    with running(
        name, num_instances=args.instances, step_s=args.step_ms / 1e3, work=args.work, flags=args.flags
    ) as router:
        shorts = []
        if not router.notes:  # an engine answers at its next step: see saturation
            shorts.append(summarise_short(*uvloop.run(run_short(router, num_clients=32, seconds=2.0))))
        streams = uvloop.run(
            run_streams(router, run="s", num_streams=500, warm_s=WARM_S, measure_s=MEASURE_S)
        )
        return [summarise(*streams), *shorts], added_s(router, *streams)


def measure_routers(args: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    found: dict[str, Any] = {}
    added: dict[str, tuple[list[float], list[float]]] = {}
    for turn in range(args.rounds):
        for name in args.routers.split(","):
            try:
                if name in PACKAGES:
                    install(name, args.work, may_install=args.install)
                figures, more = measure_router(name, args)
            except (InstallFailed, RuntimeError, ConnectionError) as exc:
                found[name] = {"skipped": str(exc).replace(str(args.work), "WORK")}
                continue
            row = found.setdefault(name, {"package": PACKAGES.get(name), "rounds": []})
            row["rounds"].append(figures[0])
            row |= {"short answers": figures[1]} if figures[1:] else {}
            tokens, firsts = added.setdefault(name, ([], []))
            tokens += more[0]
            firsts += more[1]
            row["added_to_a_token_ms"] = percentiles(tokens, 1e3, 2)
            if firsts:
                row["added_to_the_first_token_ms"] = percentiles(firsts, 1e3, 2)
            print(f"round {turn}: {name}", json.dumps(row["added_to_a_token_ms"]), figures[0], flush=True)
    return {"instances": args.instances, "streams": 500, "step_ms": args.step_ms, **found}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", default="decision,memory,saturation,routers")
    parser.add_argument("--routers", default="xllm,sglang,litellm,direct")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--step-ms", type=float, default=50.0)
    parser.add_argument("--install", action="store_true", help="install the peers that are not there")
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "service_overhead")
    parser.add_argument(
        "--service-flags",
        dest="flags",
        type=str.split,
        default=["--routing-policy", "cache_aware"],
        help="flags of xllm service, separated by spaces",
    )
    parser.add_argument("--json")
    args = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "decision": measure_decision,
        "memory": measure_memory,
        "saturation": lambda: measure_saturation(args.flags),
        "routers": lambda: measure_routers(args),
    }
    result: dict[str, Any] = {"environment": describe("--work")}
    for name in args.parts.split(","):
        result[name] = parts[name]()
        print(name, json.dumps(result[name], indent=2), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
