"""Hours in minutes: clients, instances and models come and go; what a cluster holds afterwards is what it held before.

    python benchmarks/soak.py --minutes 30 [--seed 1] [--json RESULT.json]

Two timed engines and two service replicas over a real etcd stay all the time. Meanwhile clients connect, ask, leave
in the middle or read to the end; guests (engines of the same model, and of another one) join and leave, by SIGTERM
or kill -9; new revisions of the model are rolled out on two engines, take over, and are rolled back. Rings and
patience are small, so that what grows to a bound has reached it early. After a warm-up everything is stopped for a
moment and measured, likewise at the end; RSS is sampled in between.

Reported per process: RSS before and after and its slope (Theil-Sen, MiB/min, over the last two thirds), asyncio tasks,
descriptors, sockets and threads at rest before and after; KV blocks used and leased at rest. Status 1 when tasks,
sockets or blocks were left behind, or the tokens of an answer were wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from tests.chaos.load import FORBIDDEN, Load
from tests.chaos.processes import ROOT, Process
from tests.chaos.requests import Case, build_pool
from tests.chaos.resources import PAGE_BYTES, Holding, measure, slope_per_minute
from tests.chaos.run import held, tracebacks
from tests.chaos.world import TOKEN, World, WorldOptions, until

SAMPLE_S = 5.0
MIN_WARM_UP_S = 40.0
MAX_ETCD_SOCKETS = 4
"""Of one process: its watch, and as many as it has had calls at once."""


class Churn:
    """Guests and impolite clients, until told to stop."""

    def __init__(self, world: World, pool: list[Case], seed: int, num_clients: int) -> None:
        self.counts: Counter[str] = Counter()
        self._world = world
        self._pool = pool
        self._rng = random.Random(seed)
        self._num_clients = num_clients
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False
        self._num_guests = 0

    def start(self) -> None:
        self._is_over = False
        self._tasks = [asyncio.create_task(self._leave_early()) for _ in range(self._num_clients)]
        self._tasks += [asyncio.create_task(self._invite(model)) for model in ("demo", self._other_model())]
        self._tasks.append(asyncio.create_task(self._roll_out()))

    def check(self) -> None:
        """Raise what ended a part of the churn too early."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _leave_early(self) -> None:
        """Streams that are closed after a few events; every client on a session of its own."""
        while not self._is_over:
            case = self._rng.choice(self._pool)
            url = self._rng.choice(list(self._world.urls.values()))
            num_events = self._rng.randint(0, 20)
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.post(f"{url}/v1/completions", json={**case.body, "stream": True}) as response,
                ):
                    async for _ in response.content:
                        num_events -= 1
                        if num_events <= 0:
                            break
                    self.counts["left in the middle"] += 1
            except aiohttp.ClientError:
                self.counts["could not connect"] += 1
            await asyncio.sleep(self._rng.uniform(0.0, 0.2))

    async def _invite(self, model: str) -> None:
        """One guest after the other."""
        while not self._is_over:
            guest = self._guest(model)
            try:
                await guest.until("ready at")
                await asyncio.sleep(self._rng.uniform(3.0, 8.0))
                await self._end(guest, self._rng.random() < 0.4)
                self.counts["guests of another model"] += model != "demo"
            finally:
                guest.destroy()

    async def _roll_out(self) -> None:
        """One revision after the other on two engines; one of them may be killed, then the other has its streams."""
        number = 0
        while not self._is_over:
            number += 1
            pair = [self._guest("demo", "--revision", f"r{number}") for _ in range(2)]
            try:
                for guest in pair:
                    await guest.until("ready at")
                await asyncio.sleep(self._rng.uniform(4.0, 8.0))
                await self._end(pair[0], self._rng.random() < 0.4)
                await asyncio.sleep(self._rng.uniform(0.0, 2.0))
                await self._end(pair[1], False)
                self.counts["revisions rolled out and back"] += 1
            finally:
                for guest in pair:
                    guest.destroy()
            await asyncio.sleep(self._rng.uniform(3.0, 6.0))

    def _guest(self, model: str, *flags: str) -> Process:
        self._num_guests += 1
        name = f"guest-{self._num_guests}"
        where = ("--registry", f"etcd://{self._world.etcd.endpoint}", "--rpc-token", TOKEN)
        args = ("engine", model, *flags, *self._world.executor_flags(), *where, "--instance-id", name)
        guest = Process(name, args, self._world.directory)
        guest.start()
        return guest

    async def _end(self, guest: Process, is_killed: bool) -> None:
        number = signal.SIGKILL if is_killed else signal.SIGTERM
        guest.send(number)
        await guest.wait()
        self.counts[f"guests ended by {number.name}"] += 1

    def _other_model(self) -> str:
        path = self._world.directory / "another-model"
        if not path.exists():
            shutil.copytree(ROOT / "xllm" / "assets" / "demo_model", path)
        return str(path)


async def at_rest(world: World) -> dict[str, Holding]:
    """Nobody asks, no guest is there: wait until all is quiet, then measure."""

    async def is_quiet() -> bool:
        for reply in (await world.engine_loads()).values():
            if held(reply):
                return False
        listed = {row["id"] for row in (await world.status())["instances"]}
        return listed == set(world.engines) and await world.is_whole()

    await until(is_quiet, "the cluster is at rest", 60.0)
    await asyncio.sleep(2.0)  # connections of the last clients are closing
    return {name: await measure(process) for name, process in world.processes.items()}


async def soak(directory: Path, args: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    options = WorldOptions(
        num_engines=2, step_s=0.01, lease_ttl_s=2.0, policy=args.policy, forget_after_s=5.0, num_trace_records=4096
    )  # fmt: skip
    async with World(directory, options, args.seed) as world:
        pool = await build_pool(world.session, world.urls["service-0"], args.seed, count=24, max_tokens=60)
        total_s = args.minutes * 60
        warm_up_s = max(MIN_WARM_UP_S, 0.1 * total_s)
        churn = Churn(world, pool, args.seed, args.clients)
        outcomes: Counter[str] = Counter()
        refusals: Counter[str] = Counter()
        failures: list[Any] = []
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in world.processes}
        blocks: dict[str, list[tuple[int, int, int]]] = {name: [] for name in world.engines}
        began_s = time.monotonic()
        holdings = []
        for part, seconds in (("warm-up", warm_up_s), ("run", total_s)):
            print(f"{part}: {seconds:.0f} s", flush=True)
            load = Load(world, pool, args.seed + len(holdings), num_clients=args.clients)
            churn.start()
            load.start()
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                await asyncio.sleep(SAMPLE_S)
                churn.check()
                now_s = time.monotonic() - began_s
                for name, process in world.processes.items():
                    samples[name].append((now_s, _rss_mib(process)))
                for name, reply in (await world.engine_loads()).items():
                    load_now = reply.load
                    blocks[name].append((round(now_s), load_now.blocks_used, load_now.blocks_cached))
            await load.stop()
            await churn.stop()
            outcomes += load.books.outcomes
            refusals += load.books.refusals
            failures += load.books.failures
            holdings.append(await at_rest(world))
            print({name: asdict(holding) for name, holding in holdings[-1].items()}, flush=True)
        report = _report(world, holdings, samples, outcomes, failures, churn.counts, began_s)
        thinned = {name: found[:: max(1, len(found) // 40)] for name, found in blocks.items()}
        return {**report, "refusals": dict(refusals.most_common()), "kv_blocks_used_and_cached": thinned}


def _rss_mib(process: Process) -> float:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20


def _report(
    world: World,
    holdings: list[dict[str, Holding]],
    samples: dict[str, list[tuple[float, float]]],
    outcomes: Counter[str],
    failures: list[Any],
    counts: Counter[str],
    began_s: float,
) -> dict[str, Any]:
    before, after = holdings
    problems = [f"{name}: {outcomes[name]}" for name in FORBIDDEN if outcomes[name]] + tracebacks(world)
    takeovers = {name: process.text.count("takes over from") for name, process in world.services.items()}
    if not all(takeovers.values()):
        problems.append(f"no revision took over: {takeovers}")
    processes: dict[str, Any] = {}
    for name in world.processes:
        tail = samples[name][len(samples[name]) // 3 :]
        slope = slope_per_minute([t for t, _ in tail], [v for _, v in tail])
        processes[name] = {
            "rss_mib": [round(before[name].rss_mib, 1), round(after[name].rss_mib, 1)],
            "rss_slope_mib_per_min": round(slope, 3),
        }
        for field in ("num_tasks", "num_sockets", "num_fds", "num_threads"):
            processes[name][field] = [getattr(before[name], field), getattr(after[name], field)]
        held = [_by_peer(world, name, holding) for holding in (before[name], after[name])]
        processes[name]["sockets"] = {
            peer: [part.get(peer, 0) for part in held] for peer in sorted(held[0] | held[1])
        }
        problems += _grown(name, processes[name])
    return {
        "problems": problems,
        "seconds": round(time.monotonic() - began_s),
        "calls": dict(sorted(outcomes.items())),
        "churn": dict(sorted(counts.items())),
        "revisions_took_over": takeovers,
        "processes": processes,
        "failures": failures,
        "rss_samples_mib": {
            name: [[round(t), round(v, 1)] for t, v in found[:: max(1, len(found) // 60)]]
            for name, found in samples.items()
        },
    }


def _by_peer(world: World, name: str, holding: Holding) -> dict[str, int]:
    """Sockets by whom they lead to: etcd, an engine by name."""
    names = {world.etcd_links[name].address: "etcd"}
    names |= {link.address: engine for engine, link in world.engine_links.items()}
    return {names.get(peer, peer): count for peer, count in holding.sockets.items() if count}


def _grown(name: str, process: dict[str, Any]) -> list[str]:
    """Whatever a process has more of than before.

    Connections to etcd come and go: its client keeps one for each call that was made at the same time as another.
    """
    sockets = dict(process["sockets"])
    etcd = sockets.pop("etcd", [0, 0])
    pairs = {**sockets, "num_tasks": process["num_tasks"]}
    pairs["num_fds beside etcd's"] = [fds - held for fds, held in zip(process["num_fds"], etcd, strict=True)]
    pairs["etcd's beyond its bound"] = [0, max(0, etcd[1] - MAX_ETCD_SOCKETS)]
    return [f"{name}: {what} grew from {a} to {b}" for what, (a, b) in pairs.items() if b > a]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--policy", default="cache_aware")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="directory for the logs of all processes")
    args = parser.parse_args()
    environment = describe("--keep")
    print(json.dumps(environment))
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(soak(directory, args))
    print(
        json.dumps(
            {key: value for key, value in report.items() if "samples" not in key and "kv_" not in key},
            indent=1,
        )
    )
    if args.json is not None:
        args.json.write_text(
            json.dumps({"environment": environment, "seed": args.seed, **report}, indent=1) + "\n"
        )
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
