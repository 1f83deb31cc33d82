"""Interleaved rounds: every system once per round, in alternating order, until each has enough runs that count."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import count

from benchmarks.cpu_peers.fleet import Fleet
from benchmarks.cpu_peers.server import ServerFailed
from benchmarks.cpu_peers.workloads import START, WORKLOADS, Workload, make_prompts

_SLOW_RUN_S = 40.0
_SLOW_START_S = 20.0
_MAX_TRIES = 2  # times the number of rounds
_MAX_FAILURES = 2


class Budget:
    """Minutes for the session; a run that would not end in time is not begun."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + minutes * 60
        self._took_s: dict[str, float] = {}

    def allows(self, key: str) -> bool:
        """Whether something that took as long as ``key`` last time still fits."""
        return time.monotonic() + self._took_s.get(key, 0.0) < self._end

    def note(self, key: str, took_s: float) -> None:
        """How long it took."""
        self._took_s[key] = took_s


class Targets:
    """How many runs each system still needs; slow systems need fewer."""

    def __init__(self, systems: Sequence[str], rounds: int, slow_rounds: int) -> None:
        self._rounds = dict.fromkeys(systems, rounds)
        self._slow_rounds = min(rounds, slow_rounds)
        self._kept: Counter[str] = Counter()
        self._tried: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def open(self) -> list[str]:
        """Systems that take part in the next round."""
        return [
            system
            for system, rounds in self._rounds.items()
            if self._kept[system] < rounds
            and self._tried[system] < rounds * _MAX_TRIES
            and self._failed[system] < _MAX_FAILURES
        ]

    def note(self, system: str, is_kept: bool, has_failed: bool, wall_s: float) -> None:
        """One run has ended."""
        self._tried[system] += 1
        self._kept[system] += is_kept
        self._failed[system] += has_failed
        if wall_s > _SLOW_RUN_S:
            self._rounds[system] = self._slow_rounds

    def drop(self, system: str) -> None:
        """It cannot take part."""
        self._rounds[system] = 0


def prepare(fleet: Fleet, workload: Workload, systems: Sequence[str]) -> list[str]:
    """Start and warm up; those that cannot are skipped with their reason."""
    ready = []
    for system in systems:
        try:
            fleet.warm_up(fleet.ensure(system, workload), workload)
            ready.append(system)
        except ServerFailed as exc:
            fleet.record.skip(system, workload.name, str(exc))
    return ready


def run_workload(
    fleet: Fleet, workload: Workload, systems: Sequence[str], rounds: int, slow_rounds: int, budget: Budget
) -> None:
    """W1 to W5."""
    print(f"{workload.name}: {workload.title}", flush=True)
    targets = Targets(prepare(fleet, workload, systems), rounds, slow_rounds)
    for index in count():
        turn = targets.open()
        if not turn:
            return
        prompts = make_prompts(workload, fleet.seed, index)
        for system in turn if index % 2 == 0 else turn[::-1]:
            if not budget.allows(f"{workload.name}/{system}"):
                print("  out of time", flush=True)
                return
            begin = time.monotonic()
            try:
                row = fleet.measure(fleet.ensure(system, workload), prompts, workload.output_tokens).row
            except ServerFailed as exc:
                fleet.record.skip(system, workload.name, str(exc))
                targets.drop(system)
                continue
            budget.note(f"{workload.name}/{system}", time.monotonic() - begin)
            fleet.record.add("runs", {"workload": workload.name, "round": index, "system": system, **row})
            targets.note(system, row["kept"], row.get("why") == "failed", row.get("wall_s", 0.0))
            print(f"  {index:2} {system:13} {_line(row)}", flush=True)


def run_starts(fleet: Fleet, systems: Sequence[str], rounds: int, budget: Budget) -> None:
    """Process start to first token, the model's files in the page cache; slow starters twice."""
    print(f"{START}: process start to first token", flush=True)
    targets = dict.fromkeys(systems, rounds)
    for index in range(rounds):
        for system in systems:
            if index >= targets[system] or not budget.allows(f"{START}/{system}"):
                continue
            begin = time.monotonic()
            try:
                first_s = fleet.restart(system, WORKLOADS["W1"])
            except ServerFailed as exc:
                fleet.record.skip(system, START, str(exc))
                targets[system] = 0
                continue
            if first_s > _SLOW_START_S:
                targets[system] = min(2, rounds)
            budget.note(f"{START}/{system}", time.monotonic() - begin)


def _line(row: dict[str, object]) -> str:
    keys = ("output_tok_s", "ttft_ms", "tpot_ms", "bandwidth_gb_s", "foreign_cpus", "pss_mb", "why", "error")
    return "  ".join(f"{key} {row[key]}" for key in keys if key in row)
