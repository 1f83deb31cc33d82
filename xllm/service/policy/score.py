"""Score: why an instance was chosen or not. A policy scores every instance that can take a request; the least wins.

A decision keeps the scores as columns, one number per candidate and part: with a thousand instances, objects for all of
them would cost more than the arithmetic. ``Decision.scores`` makes the objects for whoever wants to read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xllm.service.cluster.view import ClusterView
from xllm.types.ids import InstanceId
from xllm.types.request import Request, Route


class Score(NamedTuple):
    """One instance under one policy; less is better."""

    instance: InstanceId
    total: float
    parts: Mapping[str, float]
    """What ``total`` is made of, and what it was computed from."""


class ScoreTable(NamedTuple):
    """Scores of all candidates: entry i of every column is that of candidate i; candidates are ordered by id."""

    instances: Sequence[InstanceId]
    totals: Sequence[float]
    parts: Mapping[str, Sequence[float]]

    def row(self, index: int) -> Score:
        """Candidate ``index``."""
        parts = {name: column[index] for name, column in self.parts.items()}
        return Score(self.instances[index], self.totals[index], parts)


@dataclass(frozen=True, slots=True)
class Decision:
    """A route, the score it rests on, and those of all candidates."""

    route: Route
    chosen: Score
    table: ScoreTable

    @property
    def scores(self) -> tuple[Score, ...]:
        """One score per candidate, made now."""
        return tuple(map(self.table.row, range(len(self.table.totals))))


Scorer = Callable[[Request, ClusterView], ScoreTable]


@dataclass(frozen=True, slots=True)
class Policy:
    """A pure function (request, view) -> scores, and the rule that the least total wins; ties go by id."""

    name: str
    score: Scorer
    wants_prefixes: bool = False
    """Whether it asks ``view.prefixes``."""

    def decide(self, request: Request, view: ClusterView) -> Decision | None:
        """The decision with everything it rests on; None: no instance can take the request."""
        table = self.score(request, view)
        if not table.totals:
            return None
        best = table.row(table.totals.index(min(table.totals)))  # the first of equals has the least id
        return Decision(Route(prefill=best.instance, decode=best.instance), best, table)

    def __call__(self, request: Request, view: ClusterView) -> Route | None:
        """Only the route."""
        decision = self.decide(request, view)
        return None if decision is None else decision.route
