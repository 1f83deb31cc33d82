"""W6: the highest arrival rate at which 95 % of the requests meet both limits, by bisection on a fixed grid of
rates.

The limits come from the best peer alone on the machine: 4 times its median TTFT, 2 times its median TPOT. A
system that misses them even alone passes no rate and is not tried. Systems take turns, one trial each. A
trial's arrivals and prompts depend on the rate only, so every system gets the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu_peers.client import Answer, AnswerError
from benchmarks.cpu_peers.fleet import Fleet
from benchmarks.cpu_peers.record import Row
from benchmarks.cpu_peers.rounds import Budget, prepare
from benchmarks.cpu_peers.server import ServerFailed
from benchmarks.cpu_peers.systems import OURS
from benchmarks.cpu_peers.workloads import Workload, make_prompts, poisson_times_s

GRID = tuple(round(0.1 * 1.1**index, 3) for index in range(48))
_SHARE = 0.95
_NUM_ALONE = 5
_FIRST_STEP = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request has to meet, ms."""

    ttft_ms: float
    tpot_ms: float

    def lets(self, ttft_ms: float, tpot_ms: float) -> bool:
        """Whether a request that took this long meets both."""
        return ttft_ms <= self.ttft_ms and tpot_ms <= self.tpot_ms

    def share_met(self, answers: Sequence[Answer | AnswerError]) -> float:
        """Of all offered requests; a failed one meets nothing."""
        met = [
            self.lets(answer.ttft_s * 1e3, answer.tpot_s * 1e3)
            for answer in answers
            if isinstance(answer, Answer)
        ]
        return sum(met) / len(answers)


class RateSearch:
    """Which grid index to try next; strides until a pass and a failure are known, then halves between them."""

    def __init__(self, first: int, size: int = len(GRID)) -> None:
        self._next: int | None = max(0, min(first, size - 1))
        self._size = size
        self._passed: int | None = None
        self._failed: int | None = None

    @property
    def next(self) -> int | None:
        """None once the highest passing index is known."""
        return self._next

    @property
    def passed(self) -> int | None:
        """Highest index that passed so far."""
        return self._passed

    def tell(self, index: int, is_pass: bool) -> None:
        """The outcome of a trial."""
        if is_pass:
            self._passed = index
        else:
            self._failed = index
        if self._failed is None:
            above = min(index + _FIRST_STEP, self._size - 1)
            self._next = above if above > index else None
        elif self._passed is None:
            self._next = max(0, index - _FIRST_STEP) if index else None
        else:
            middle = (self._passed + self._failed) // 2
            self._next = middle if middle > self._passed else None


def limits_of(rows: Sequence[Row]) -> Limits | None:
    """From the newest unloaded medians of every peer; None without a peer."""
    newest = {row["system"]: row for row in rows if row["system"] != OURS}.values()
    if not newest:
        return None
    return Limits(4 * min(row["ttft_ms"] for row in newest), 2 * min(row["tpot_ms"] for row in newest))


def run_capacity(
    fleet: Fleet,
    workload: Workload,
    systems: Sequence[str],
    num_requests: int,
    budget: Budget,
    limits: Limits | None = None,
) -> None:
    """The whole of W6; without ``limits`` they come from the best peer alone."""
    print(f"{workload.name}: {workload.title}", flush=True)
    alone = {system: _alone(fleet, workload, system) for system in prepare(fleet, workload, systems)}
    for row in alone.values():
        fleet.record.add("unloaded", row)
    limits = limits or limits_of(fleet.record.data["unloaded"])
    if limits is None:
        raise SystemExit("W6 needs a peer, or an earlier session with one: the limits come from it")
    print(f"  limits: TTFT {limits.ttft_ms:.0f} ms, TPOT {limits.tpot_ms:.1f} ms", flush=True)
    searches = {}
    for system, row in alone.items():
        if limits.lets(row["ttft_ms"], row["tpot_ms"]):
            searches[system] = RateSearch(_guess(fleet, workload, system))
            continue
        took = f"{row['ttft_ms']:.0f} ms to the first token and {row['tpot_ms']:.1f} ms a token"
        what = f"limits of {limits.ttft_ms:.0f} and {limits.tpot_ms:.1f} ms"
        fleet.record.skip(system, workload.name, f"alone on the machine it takes {took}, beyond the {what}")
    while any(search.next is not None for search in searches.values()):
        for system, search in searches.items():
            if search.next is None:
                continue
            key = f"{workload.name}/{system}"
            if not budget.allows(key):
                print("  out of time", flush=True)
                return
            begin = time.monotonic()
            try:
                search.tell(search.next, _trial(fleet, workload, system, search.next, num_requests, limits))
            except ServerFailed as exc:
                fleet.record.skip(system, workload.name, str(exc))
                search.tell(0, is_pass=False)
            budget.note(key, time.monotonic() - begin)
        _note_result(searches)


def _alone(fleet: Fleet, workload: Workload, system: str) -> Row:
    """Medians of single requests."""
    answers: list[Answer] = []
    bandwidth: list[float] = []
    for index in range(_NUM_ALONE):
        prompts = make_prompts(workload, fleet.seed, -100 - index, 1)
        measured = fleet.measure(fleet.ensure(system, workload), prompts, workload.output_tokens)
        answers += [answer for answer in measured.answers if isinstance(answer, Answer)]
        bandwidth += measured.row["bandwidth_gb_s"]
    return {
        "system": system,
        "ttft_ms": round(statistics.median(answer.ttft_s for answer in answers) * 1e3, 3),
        "tpot_ms": round(statistics.median(answer.tpot_s for answer in answers) * 1e3, 3),
        "bandwidth_gb_s": round(statistics.median(bandwidth), 1),
    }


def _trial(
    fleet: Fleet, workload: Workload, system: str, index: int, num_requests: int, limits: Limits
) -> bool:
    """One rate, repeated once where the machine changed meanwhile."""
    rate = GRID[index]
    times_s = poisson_times_s(rate, num_requests, fleet.seed)
    is_pass = False
    for attempt in range(2):
        prompts = make_prompts(workload, fleet.seed, 1000 + 2 * index + attempt, num_requests)
        server = fleet.ensure(system, workload)
        measured = fleet.measure(server, prompts, workload.output_tokens, times_s)
        share = limits.share_met(measured.answers)
        is_pass = share >= _SHARE
        row = {"system": system, "rate": rate, "share": round(share, 3), "is_pass": is_pass}
        fleet.record.add("trials", {**row, "limits": [limits.ttft_ms, limits.tpot_ms], **measured.row})
        what = "pass" if is_pass else "miss"
        print(f"  {system:13} {rate:6.3f} req/s: {share:.1%} {what}  {measured.row}", flush=True)
        if measured.row["kept"]:
            break
    return is_pass


def _guess(fleet: Fleet, workload: Workload, system: str) -> int:
    """A grid index near 70 % of what the system did in W2, whose requests have the same lengths."""
    rows: list[dict[str, Any]] = fleet.record.data["runs"]
    known = [
        row["output_tok_s"]
        for row in rows
        if row["workload"] == "W2" and row["system"] == system and row["kept"]
    ]
    rate = 0.7 * statistics.median(known[-5:]) / workload.output_tokens if known else 0.5
    return min(range(len(GRID)), key=lambda index: abs(GRID[index] - rate))


def _note_result(searches: dict[str, RateSearch]) -> None:
    found = {s: GRID[r.passed] if r.passed is not None else None for s, r in searches.items()}
    print(f"  so far: {found}", flush=True)
