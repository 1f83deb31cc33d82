"""UrgencyOrder: deadlines while they can be met, value per second when they cannot (after SlideBatching; report 2.7).

At the begin of a step the requests that wait for their first token are walked in order of their deadlines (arrival
plus TTFT budget), adding up the seconds each still needs. Where one would be late, the request with the least value
per second among those walked so far is set aside (Moore and Hodgson's rule for the fewest late jobs, with values).
What remains runs by deadline, what was set aside behind it by value per second. At low load nothing is set aside and
the order is that of the deadlines; the higher the load, the more of it is by density: the boundary slides by itself.

Value is ``2 ** -priority``. A request without TTFT budget is never late and comes behind those with one. Guards
against starvation: the oldest request that has waited for ``starvation_s`` goes first, one at a time, and so does
whoever was preempted ``max_preemptions`` times; both by arrival.

INVARIANTS
- Keys are (offline, class, value in the class, arrival number): total, unique, frozen between two rankings.
- Online work always comes before offline work.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection

from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.engine.scheduler.pace import measure_pace
from xllm.engine.scheduler.sequence import Key, Sequence
from xllm.perf.time_model import TimeModel

FIRST, ON_TIME, LATE = 0, 1, 2
RANK_EVERY_S = 0.005
"""Ranking costs about a microsecond per waiting request; the order is not worth more than this often."""


class UrgencyOrder:
    """See the module."""

    def __init__(
        self, times: TimeModel, limits: SchedulerLimits, *, starvation_s: float, margin: float
    ) -> None:
        self._times = times
        self._limits = limits
        self._starvation_s = starvation_s
        self._margin = margin
        self._next_s = -math.inf
        self.num_late = 0
        """Set aside by the last ranking: how far the boundary has slid."""

    def key(self, seq: Sequence, now_s: float) -> Key:
        """By deadline until the next ranking; whoever has streamed already comes back before all deadlines."""
        if seq.num_preemptions >= self._limits.max_preemptions:
            return (int(seq.request.offline), FIRST, seq.arrival_s, seq.arrival)
        due_s = seq.due_s if seq.first_token_s is None else -math.inf
        return (int(seq.request.offline), ON_TIME, due_s, seq.arrival)

    def rank(self, waiting: Collection[Sequence], running: Collection[Sequence], now_s: float) -> bool:
        """See the module; O(n log n) in the requests without a first token."""
        if not len(waiting) or now_s < self._next_s:
            return False
        self._next_s = now_s + RANK_EVERY_S
        if all(s.due_s == math.inf for s in waiting):
            return False  # nobody has a budget: the keys say first come, first served
        seqs = [s for s in waiting if s.first_token_s is None and not s.request.offline]
        oldest = min(seqs, key=lambda s: s.arrival_s, default=None)
        seqs += [s for s in running if s.first_token_s is None and not s.request.offline]
        if oldest is not None and now_s - oldest.arrival_s > self._starvation_s:
            oldest.key = (0, FIRST, oldest.arrival_s, oldest.arrival)
            seqs.remove(oldest)
        for seq in seqs:
            seq.key = (0, ON_TIME, seq.due_s, seq.arrival)
        late = self._set_aside(seqs, now_s, self._token_s(running))
        for cost, seq in late:
            seq.key = (0, LATE, cost, seq.arrival)
        for seq in seqs:
            if seq.num_preemptions >= self._limits.max_preemptions:
                seq.key = (0, FIRST, seq.arrival_s, seq.arrival)
        self.num_late = len(late)
        return True

    def _token_s(self, running: Collection[Sequence]) -> float:
        limit = self._limits.max_num_batched_tokens
        return measure_pace(running, self._times, max_tokens=limit, margin=self._margin).token_s

    def _set_aside(
        self, seqs: Collection[Sequence], now_s: float, token_s: float
    ) -> list[tuple[float, Sequence]]:
        """Moore and Hodgson's walk: (seconds per value, sequence) of those that are given up for the others."""
        kept: list[tuple[float, int, float, Sequence]] = []
        late: list[tuple[float, Sequence]] = []
        end_s = now_s
        for seq in sorted(seqs, key=lambda s: (s.due_s, s.arrival)):
            work_s = max(1, len(seq.token_ids) - seq.num_scheduled) * token_s
            cost = work_s * 2.0 ** max(-30, min(30, seq.request.priority))
            heapq.heappush(kept, (-cost, seq.arrival, work_s, seq))
            end_s += work_s
            if end_s > seq.due_s:
                worst, _, saved_s, dropped = heapq.heappop(kept)
                end_s -= saved_s
                late.append((-worst, dropped))
        return late

    def ahead(
        self, seq: Sequence, others: Collection[Sequence], running: Collection[Sequence], now_s: float
    ) -> list[Sequence]:
        """What the next ranking will put before it; everybody online when it would be set aside itself."""
        if seq.request.offline:
            return list(others)
        online = [s for s in others if not s.request.offline]
        late = {s.id for _, s in self._set_aside([*online, seq], now_s, self._token_s(running))}
        if seq.id in late:
            return online
        return [s for s in online if s.id not in late and (s.key[1] == FIRST or s.due_s <= seq.due_s)]

    def on_admit(self, seq: Sequence, num_cached: int) -> None:
        """Of no interest."""

    def on_sample(self, seq: Sequence) -> None:
        """Of no interest."""
