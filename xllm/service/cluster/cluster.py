"""Cluster: every known instance, and the pictures policies decide on.

Instances form groups by (model, revision). One group is served; the others are known and shown, never routed to.

INVARIANTS
- Inside a group everything that names a block is equal: block size, hash version, vocabulary. Who differs is refused,
  with the reason, and is in no view.
- The served group is that of the first instance that may be served; it does not change afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xllm.base.clock import Clock
from xllm.errors import ConfigError
from xllm.service.cluster.instance import Instance, Patience
from xllm.service.cluster.view import ClusterView
from xllm.types.ids import InstanceId
from xllm.types.instance import InstanceInfo

TICK_S = 0.5
_STOOD_STILL_S = 4 * TICK_S
"""A tick that comes this late says that this process was frozen or starved."""


class Cluster:
    """Instances by id; see the module."""

    def __init__(
        self,
        clock: Clock,
        *,
        stall_timeout_s: float,
        patience: Patience | None = None,
        may_serve: Callable[[InstanceInfo], bool] = lambda info: True,
    ) -> None:
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._patience = patience
        self._may_serve = may_serve
        self._instances: dict[InstanceId, Instance] = {}
        self._group: tuple[str, str] | None = None
        self._ticked_s: float | None = None
        self.refused: dict[InstanceId, str] = {}
        """Published instances that cannot be used, and why."""

    def __iter__(self) -> Iterator[Instance]:
        return iter([self._instances[key] for key in sorted(self._instances)])

    def served(self) -> list[Instance]:
        """Instances of the served group, ordered by id."""
        return [instance for instance in self if instance.info.group == self._group]

    def add(self, info: InstanceInfo) -> Instance:
        """Make an instance known, or return the one there is.

        Raises:
            ConfigError: it names blocks or tokens differently from the others of its group.
        """
        for other in self._instances.values():
            if other.info.group == info.group and other.info.id != info.id:
                try:
                    _check_same_names(other.info, info)
                except ConfigError as error:
                    self.refused[info.id] = error.message
                    raise
        self.refused.pop(info.id, None)
        if self._group is None and self._may_serve(info):
            self._group = info.group
        return self._instances.setdefault(
            info.id, Instance(info, self._clock, self._stall_timeout_s, self._patience)
        )

    def remove(self, instance_id: InstanceId) -> None:
        """Forget an instance."""
        self._instances.pop(instance_id, None)
        self.refused.pop(instance_id, None)

    def get(self, instance_id: InstanceId) -> Instance | None:
        """An instance by id."""
        return self._instances.get(instance_id)

    def tick(self) -> None:
        """Call every ``TICK_S``: notices when this process itself stood still."""
        now_s = self._clock.now()
        if self._ticked_s is not None and now_s - self._ticked_s > _STOOD_STILL_S:
            for instance in self._instances.values():
                instance.forgive(now_s - self._ticked_s - TICK_S)
        self._ticked_s = now_s

    def view(self) -> ClusterView:
        """The served group now."""
        return ClusterView(instances=tuple(instance.view() for instance in self.served()))


def _check_same_names(first: InstanceInfo, second: InstanceInfo) -> None:
    for name in ("vocab_size", "block_size", "hash_version"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ConfigError(
                f"instance {second.id} has {name} {theirs!r}, instance {first.id} has {ours!r}",
                hint="start all engines of one model with the same block size and version",
            )
