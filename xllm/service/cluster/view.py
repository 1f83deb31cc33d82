"""ClusterView: the instances as a policy sees them. Frozen, so a decision can be explained and replayed."""

from __future__ import annotations

from dataclasses import dataclass

from xllm.types.ids import InstanceId
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterView:
    """All instances, ordered by id."""

    instances: tuple[InstanceView, ...]

    def routable(self) -> tuple[InstanceView, ...]:
        """Ready instances, or the degraded ones when none is ready."""
        ready = tuple(item for item in self.instances if item.state == "ready")
        return ready or tuple(item for item in self.instances if item.is_routable)
