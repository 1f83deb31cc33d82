"""Cluster: every known instance, and the pictures policies decide on."""

from __future__ import annotations

from collections.abc import Iterator

from xllm.base.clock import Clock
from xllm.errors import ConfigError
from xllm.service.cluster.instance import Instance
from xllm.service.cluster.view import ClusterView
from xllm.types.ids import InstanceId
from xllm.types.instance import InstanceInfo


class Cluster:
    """Instances by id. All serve the same model: a request may go to any of them."""

    def __init__(self, clock: Clock, *, stall_timeout_s: float) -> None:
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._instances: dict[InstanceId, Instance] = {}

    def __iter__(self) -> Iterator[Instance]:
        return iter([self._instances[key] for key in sorted(self._instances)])

    def add(self, info: InstanceInfo) -> Instance:
        """Make an instance known, or return the one there is.

        Raises:
            ConfigError: it serves another model than the others, so routing between them would be wrong.
        """
        for other in self._instances.values():
            _check_same_model(other.info, info)
        return self._instances.setdefault(info.id, Instance(info, self._clock, self._stall_timeout_s))

    def remove(self, instance_id: InstanceId) -> None:
        """Forget an instance."""
        self._instances.pop(instance_id, None)

    def get(self, instance_id: InstanceId) -> Instance | None:
        """An instance by id."""
        return self._instances.get(instance_id)

    def view(self) -> ClusterView:
        """The cluster now."""
        return ClusterView(instances=tuple(instance.view() for instance in self))


def _check_same_model(first: InstanceInfo, second: InstanceInfo) -> None:
    for name in ("model", "revision", "vocab_size", "block_size", "hash_version"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ConfigError(
                f"instance {second.id} has {name} {theirs!r}, instance {first.id} has {ours!r}",
                hint="start all engines with the same model and block size",
            )
