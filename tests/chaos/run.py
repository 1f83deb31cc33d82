"""A whole run: calm, faults under load, settling, verdict, report."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos.faults import Faults
from tests.chaos.load import FORBIDDEN, Load
from tests.chaos.requests import REAL_TOLERANCE, build_pool
from tests.chaos.schedule import ALONE_S, ENGINE_KINDS, SERVICE_KINDS, Fault
from tests.chaos.watch import Mark, Watch
from tests.chaos.world import World, WorldOptions, until

NOTICED_S = 5.0


@dataclass(kw_only=True)
class ChaosOptions:
    """One run."""

    seed: int
    faults: list[Fault]
    """At their times, after ``turns``."""
    turns: Sequence[Fault] = ()
    """First, one after the other, each alone: the next strikes when the whole cluster is well again, and rested."""
    world: WorldOptions = field(default_factory=WorldOptions)
    num_clients: int = 16
    num_bodies: int = 32
    max_tokens: int = 120
    say: Callable[[str], None] = lambda text: None


async def run_chaos(directory: Path, options: ChaosOptions) -> dict[str, Any]:
    """The report; what it found wrong is under ``problems``, which is empty after a good run."""
    began_s = time.monotonic()
    async with World(directory, options.world, options.seed) as world:
        options.say(f"up after {time.monotonic() - began_s:.1f} s: {', '.join(world.processes)}, etcd")
        pool = await build_pool(
            world.session, world.urls["service-0"], options.seed, count=options.num_bodies,
            max_tokens=options.max_tokens, tolerance=0.0 if options.world.executor == "timed" else REAL_TOLERANCE,
        )  # fmt: skip
        load = Load(world, pool, options.seed, num_clients=options.num_clients)
        watch = Watch(world)
        load.on_event = watch.saw_event
        watch.start()
        load.start()
        failovers = Failovers(world)
        await _strike_all(world, load, watch, failovers, options)
        options.say("all faults are over; waiting for what is under way")
        await load.stop()
        settled_s = await _settle(world)
        await watch.close()
        await failovers.read()
        problems = [f"{name}: {load.books.outcomes[name]}" for name in FORBIDDEN if load.books.outcomes[name]]
        problems += await _leaks(world)
        problems += tracebacks(world)
        if load._tasks and not load.books.outcomes["right"]:
            problems.append("no call succeeded")
        alone = {mark.fault.kind for mark in watch.marks if mark.is_alone}
        problems += [
            f"never struck alone: {fault.kind}" for fault in options.turns if fault.kind not in alone
        ]
        return _report(world, load, watch, failovers.num_seen, options, problems, settled_s)


class Failovers:
    """How many attempts were started anew: counters of the replicas, which a killed one takes with it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[tuple[str, int], float] = {}

    async def read(self) -> None:
        """Before a replica is struck, and at the end: what it counts after the last call is not seen."""
        for name, process in self._world.services.items():
            life = name, process.generation
            found = await self._world.metric(name, "attempts_retried_total")
            self._seen[life] = max(found, self._seen.get(life, 0.0))

    @property
    def num_seen(self) -> int:
        """In all lives of all replicas."""
        return int(sum(self._seen.values()))


async def _strike_all(
    world: World, load: Load, watch: Watch, failovers: Failovers, options: ChaosOptions
) -> None:
    faults = Faults(world)
    tasks: list[asyncio.Task[None]] = []
    busy: set[str] = set()
    began_s = time.monotonic()

    async def strike(fault: Fault) -> None:
        options.say(f"{time.monotonic() - began_s:7.1f} s  {fault.kind}: {fault.target}, {fault.lasts_s:g} s")
        if fault.target in busy:  # a slow machine has not started it again yet
            options.say(f"           ... left out: {fault.target} is still busy")
            return
        busy.add(fault.target)
        if fault.kind in SERVICE_KINDS:
            await failovers.read()
        await faults.strike(fault, *_books_of(fault, load, watch))
        busy.discard(fault.target)

    try:
        for fault in options.turns:
            await asyncio.sleep(ALONE_S)
            await strike(replace(fault, at_s=round(time.monotonic() - began_s, 2)))
            await until(world.is_whole, f"every replica sees every engine ready after: {fault.kind}")
        if options.turns:
            await asyncio.sleep(ALONE_S)
        offset_s = time.monotonic() - began_s
        for fault in options.faults:
            await asyncio.sleep(max(0.0, began_s + offset_s + fault.at_s - time.monotonic()))
            shifted = replace(fault, at_s=round(fault.at_s + offset_s, 2))
            tasks.append(asyncio.create_task(strike(shifted)))
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await faults.close()


def _books_of(fault: Fault, load: Load, watch: Watch) -> tuple[Callable[[], None], Callable[[], None]]:
    """What is noted when a fault strikes, and when its cause is gone."""
    marks: list[Mark] = []
    before = 0

    def struck() -> None:
        nonlocal before
        before = load.books.outcomes["right"]
        marks.append(watch.struck(fault, set(load.live)))

    def healed() -> None:
        marks[0].num_right = load.books.outcomes["right"] - before
        watch.healed(marks[0])

    return struck, healed


async def _settle(world: World) -> float:
    """Until everybody is ready again and nothing is held; returns how long that took."""
    began_s = time.monotonic()
    await until(world.is_whole, "every replica sees every engine ready again")

    async def is_empty() -> bool:
        # Engines wait for the replica that was killed to come back, up to their grace time.
        return not await _leaks(world)

    try:
        await until(is_empty, "nothing is held any more", 150.0)
    except AssertionError:
        pass  # told as a leak, with the figures
    return round(time.monotonic() - began_s, 1)


def held(reply: Any) -> dict[str, int]:
    """What an engine without requests must not hold."""
    load = reply.load
    counts = {
        "running": load.num_running, "waiting": load.num_waiting, "blocks used": load.blocks_used,
        "blocks leased": load.blocks_leased, "unfinished": reply.health.num_unfinished,
        "blocks missing": load.blocks_total - load.blocks_free - load.blocks_used - load.blocks_cached
        - load.blocks_leased - load.blocks_pinned,
    }  # fmt: skip
    return {name: count for name, count in counts.items() if count}


async def _leaks(world: World) -> list[str]:
    found = []
    for name, reply in (await world.engine_loads()).items():
        if held(reply):
            found.append(f"{name} still holds {held(reply)}")
    for service in world.services:
        for row in await world.waits(service):
            if str(row.get("owner", "")).startswith(("request", "session")) or row.get("overdue"):
                found.append(f"{service}: {row['source']} still waits: {row['owner']}: {row['reason']}")
    status = await world.status()
    if [row["state"] for row in status["instances"]] != ["ready"] * len(world.engines):
        found.append(f"the registry has {[(row['id'], row['state']) for row in status['instances']]}")
    if len(status["services"]) != len(world.services) or len(status["leaders"]) != 1:
        found.append(f"the registry has services {status['services']}, leaders {status['leaders']}")
    return found


def tracebacks(world: World) -> list[str]:
    found = []
    for process in world.processes.values():
        text = process.text
        if "Traceback" in text:
            at = text.index("Traceback")
            found.append(f"{process.name} wrote a traceback: {text[at : at + 1500]}")
        if not process.is_alive:
            found.append(f"{process.name} ended by itself with status {process.status}: {text[-500:]}")
    return found


def summarize(marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    """Recovery per kind of fault, over those that struck alone where there are any."""
    by_kind: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        by_kind[mark.fault.kind].append(mark)
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted(by_kind):
        all_marks = by_kind[kind]
        alone = [mark for mark in all_marks if mark.is_alone] or all_marks
        noticed = [value for mark in alone for value in mark.noticed_s.values()]
        gaps = [mark.worst_gap_s for mark in alone if mark.worst_gap_s]
        backs = [mark.back_s for mark in alone if mark.back_s is not None]
        row: dict[str, Any] = {"times": len(all_marks), "alone": sum(mark.is_alone for mark in all_marks)}
        if kind in ENGINE_KINDS:
            row |= {"noticed_s": _spread(noticed), "back_s": _spread(backs)}
        row["stream_gap_s"] = _spread(gaps)
        found[kind] = row
    return found


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def _report(
    world: World,
    load: Load,
    watch: Watch,
    num_failovers: int,
    options: ChaosOptions,
    problems: list[str],
    settled_s: float,
) -> dict[str, Any]:
    books = load.books
    logs = {name: process.text for name, process in world.services.items()}
    drained = "".join(process.text for process in world.engines.values())
    return {
        "seed": options.seed,
        "world": {"engines": options.world.num_engines, "services": options.world.num_services,
                  "policy": options.world.policy, "executor": options.world.executor, "model": options.world.model,
                  "step_s": options.world.step_s if options.world.executor == "timed" else None,
                  "lease_ttl_s": options.world.lease_ttl_s, "netns": options.world.netns, "clients": options.num_clients},
        "problems": problems,
        "calls": dict(sorted(books.outcomes.items())),
        "refusals": dict(books.refusals.most_common(20)),
        "right_answers": dict(sorted(books.kinds.items())),
        "tokens_compared": books.num_tokens,
        "logprobs_compared": books.num_logprobs,
        "attempts_started_anew": num_failovers,
        "worst_call_s": round(books.worst_s, 2),
        "failures": books.failures,
        "recovery": summarize(watch.marks),
        "false_alarms": watch.false_alarms,
        "migrated_by_drains": sum(map(int, re.findall(r"(\d+) requests went on elsewhere", drained))),
        "connections_cut_by_services": sum(len(re.findall("its connection is cut", text)) for text in logs.values()),
        "worst_lag_of_the_harness_s": round(watch.worst_lag_s, 3),
        "settled_s": settled_s,
        "faults": [mark.as_row() for mark in watch.marks],
    }  # fmt: skip


def format_report(report: dict[str, Any]) -> str:
    """For people."""
    calls = ", ".join(f"{count} {name}" for name, count in report["calls"].items())
    lines = [
        f"calls: {calls}; {report['tokens_compared']} tokens compared,"
        f" {report['logprobs_compared']} of them with log-probabilities; {report['attempts_started_anew']} failovers",
        f"{'fault':24} {'times':>5} {'alone':>5}  {'noticed s':>13}  {'stream gap s':>13}  {'back s':>13}",
    ]
    for kind, row in report["recovery"].items():
        cells = [_cell(row.get(name)) for name in ("noticed_s", "stream_gap_s", "back_s")]
        lines.append(
            f"{kind:24} {row['times']:>5} {row['alone']:>5}  " + "  ".join(f"{c:>13}" for c in cells)
        )
    lines.append(
        "(median / max; noticed: a replica no longer calls the engine ready; stream gap: the longest wait"
    )
    lines.append(" of a stream that was open at the strike; back: ready again after the cause was gone)")
    lines.append(f"false alarms: {len(report['false_alarms'])} {json.dumps(report['false_alarms'][:5])}")
    lines += [f"PROBLEM: {problem}" for problem in report["problems"]]
    lines += [f"FAILURE: {json.dumps(failure)}" for failure in report["failures"][:10]]
    return "\n".join(lines)


def _cell(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['median']:.2f} / {spread['max']:.2f}"
