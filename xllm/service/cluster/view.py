"""ClusterView: the instances as a policy sees them. Frozen, so a decision can be explained and replayed.

What policies derive from one instance alone is a cached property of its picture: a picture lives until its instance
changes, so a decision over a thousand instances works such things out only for the few that changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from xllm.perf.latency import Predictor, build_predictor
from xllm.types.ids import BlockHash, InstanceId
from xllm.types.instance import InstanceInfo, InstanceState, LoadReport
from xllm.types.request import SloBudgets

MAX_BLIND_REQUESTS = 32
"""Requests that one service sends to an instance it does not hear from, when there is no other."""
RUNNING_TOKENS = 4.0
"""A sequence that is there costs a newcomer about as much time as this many prompt tokens: its share of the steps."""


@dataclass(frozen=True, kw_only=True)
class InstanceView:
    """One instance at one moment."""

    info: InstanceInfo
    state: InstanceState
    load: LoadReport
    num_inflight: int
    """Requests this service has there now."""
    num_routed: int
    """Requests this service sent there; who joins or comes back starts with the fewest of the others."""
    num_unreported: int = 0
    """Of them, those sent after its last load report."""
    num_pending_tokens: int = 0
    """Prompt tokens it has to compute for requests of this service that have no output yet: cached ones, as far as they
    were predicted, not counted."""
    num_pending_prompt_tokens: int = 0
    """All prompt tokens of those requests."""
    num_foreign: int = 0
    """Sequences it had at its last load report beyond the requests of this service."""
    prefill_share: float = 0.0
    """Share of its time that prompts took lately, by its own step costs."""

    @cached_property
    def id(self) -> InstanceId:
        """Its name."""
        return self.info.id

    @cached_property
    def num_outstanding(self) -> int:
        """Requests it has, those of other replicas too: what it reported, and what we sent since."""
        return self.load.num_running + self.load.num_waiting + self.num_unreported

    @cached_property
    def queued_tokens(self) -> float:
        """Prompt tokens to compute for requests that have no output yet."""
        foreign = self.load.num_waiting_tokens - self.num_pending_prompt_tokens
        return self.num_pending_tokens + max(foreign, 0)

    @cached_property
    def outstanding_tokens(self) -> float:
        """Prompt tokens, or as much work, that stand before a new request."""
        num_running = max(self.load.num_running + self.load.num_waiting, self.num_inflight)
        return self.queued_tokens + RUNNING_TOKENS * num_running

    @cached_property
    def predictor(self) -> Predictor | None:
        """What a request would experience there; None: the instance publishes no step costs."""
        load = self.load
        if load.step_costs is None:
            return None
        return build_predictor(
            load.step_costs,
            running=load.num_running,
            waiting=load.num_waiting + self.num_unreported,
            running_tokens=load.num_running_tokens,
            ahead_tokens=self.queued_tokens,
            rows=self.info.max_num_seqs,
            budget=self.info.max_num_batched_tokens,
            prefill_share=self.prefill_share,
        )

    @cached_property
    def free_seqs(self) -> float:
        """Requests it can run beyond those it has (negative: that wait there); infinite where that is unknown."""
        max_seqs = self.info.max_num_seqs
        return max_seqs - self.num_inflight - self.num_foreign if max_seqs else math.inf

    def has_room(self, max_waiting: int) -> bool:
        """Whether it has less than it should have: the sequences it can run, and ``max_waiting`` more.

        Each of the services that have requests there may have its part of them, whatever the others have: who fills
        every place as it gets free would keep the others away.
        """
        if self.free_seqs > -max_waiting:
            return True
        num_services = max(1, self.load.num_services + (not self.num_inflight))
        return self.num_inflight * num_services < self.info.max_num_seqs + max_waiting

    @property
    def is_routable(self) -> bool:
        """Whether new requests may go there when nothing better is there; see :meth:`ClusterView.routable`."""
        if self.state == "suspect":
            return self.num_unreported < MAX_BLIND_REQUESTS
        return self.state in ("ready", "degraded")


class Prefixes(Protocol):
    """Who holds which cached prefix."""

    def match(self, hashes: Sequence[BlockHash]) -> Mapping[InstanceId, float]:
        """Blocks of the prefix that each instance holds; who holds none may be left out."""
        ...


class NoPrefixes:
    """Nothing is known of anybody's cache."""

    def match(self, hashes: Sequence[BlockHash]) -> Mapping[InstanceId, float]:
        """Nobody holds anything."""
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterView:
    """All instances, ordered by id."""

    instances: tuple[InstanceView, ...]
    prefixes: Prefixes = field(default_factory=NoPrefixes)
    """Asked once per decision."""
    default_slo: SloBudgets = SloBudgets()
    """Latency budgets of requests that name none."""

    def routable(self) -> tuple[InstanceView, ...]:
        """Ready instances; when none is, degraded ones (work stands still); when none is, suspect ones (silent).

        A silent instance may be frozen, or merely starved of CPU: a request is better off there than refused, since it
        moves on as soon as another one is ready. It gets ``MAX_BLIND_REQUESTS`` at most until it is heard again.
        """
        ready = tuple([item for item in self.instances if item.state == "ready"])
        if ready:
            return ready
        for state in ("degraded", "suspect"):
            found = tuple(item for item in self.instances if item.state == state and item.is_routable)
            if found:
                return found
        return ()
