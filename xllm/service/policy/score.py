"""Score: why an instance was chosen or not. A policy scores every instance that can take a request; the least wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xllm.service.cluster.view import ClusterView
from xllm.types.ids import InstanceId
from xllm.types.request import Request, Route


class Score(NamedTuple):
    """One instance under one policy; less is better. A tuple, since a decision makes one per instance."""

    instance: InstanceId
    total: float
    parts: Mapping[str, float]
    """What ``total`` is made of, and what it was computed from."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A route and the scores of all candidates."""

    route: Route
    scores: tuple[Score, ...]

    @property
    def chosen(self) -> Score:
        """The score of the instance that was chosen."""
        return next(score for score in self.scores if score.instance == self.route.prefill)


Scorer = Callable[[Request, ClusterView], tuple[Score, ...]]


@dataclass(frozen=True, slots=True)
class Policy:
    """A pure function (request, view) -> scores, and the rule that the least total wins; ties go by id."""

    name: str
    score: Scorer
    wants_prefixes: bool = False
    """Whether it asks ``view.prefixes``."""

    def decide(self, request: Request, view: ClusterView) -> Decision | None:
        """The decision with everything it rests on; None: no instance can take the request."""
        scores = self.score(request, view)
        if not scores:
            return None
        best = min(scores, key=_rank)
        return Decision(Route(prefill=best.instance, decode=best.instance), scores)

    def __call__(self, request: Request, view: ClusterView) -> Route | None:
        """Only the route."""
        decision = self.decide(request, view)
        return None if decision is None else decision.route


def _rank(score: Score) -> tuple[float, InstanceId]:
    return score.total, score.instance
