"""ClusterView: the instances as a policy sees them. Frozen, so a decision can be explained and replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from xllm.types.ids import BlockHash, InstanceId
from xllm.types.instance import InstanceInfo, InstanceState, LoadReport


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceView:
    """One instance at one moment."""

    info: InstanceInfo
    state: InstanceState
    load: LoadReport
    num_inflight: int
    """Requests this service has there now."""
    num_routed: int
    """Requests this service ever sent there."""
    num_unreported: int = 0
    """Of them, those sent after its last load report."""
    num_pending_tokens: int = 0
    """Prompt tokens it has to compute for requests of this service that have no output yet: cached ones, as far as they
    were predicted, not counted."""
    num_pending_prompt_tokens: int = 0
    """All prompt tokens of those requests."""

    @property
    def id(self) -> InstanceId:
        """Its name."""
        return self.info.id

    @property
    def num_outstanding(self) -> int:
        """Requests it has, those of other replicas too: what it reported, and what we sent since."""
        return self.load.num_running + self.load.num_waiting + self.num_unreported

    @property
    def is_routable(self) -> bool:
        """Whether new requests may go there; ``degraded`` (work stands still) only when nothing better is there."""
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

    def routable(self) -> tuple[InstanceView, ...]:
        """Ready instances, or the degraded ones when none is ready."""
        ready = tuple(item for item in self.instances if item.state == "ready")
        return ready or tuple(item for item in self.instances if item.is_routable)
