"""Cluster: every known instance, and the pictures policies decide on.

Instances form groups by (model, revision). One group is served: new requests go there. The others are known and shown;
who runs in one of them stays in it.

Another revision of the served model takes over as soon as it has a ready instance and at least as many instances up as
the served one: to roll a revision out, start the new instances, then drain the old ones. At equal numbers the later
group wins: that whose oldest instance started last, by what the instances publish. The rule looks at the instances
only, not at when this service heard of them, so that replicas agree without talking, whenever each was started.

INVARIANTS
- Inside a group everything that names a block is equal: block size, hash version, vocabulary. Who differs is refused,
  with the reason, and is in no view.
- A picture of an instance that has not changed is the same object; ``view`` costs what changed since the last one.
- The served model's name never changes, and a group with another vocabulary never takes over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

from xllm.base.clock import Clock
from xllm.errors import ConfigError
from xllm.service.cluster.instance import Instance, Patience
from xllm.service.cluster.view import ClusterView, InstanceView
from xllm.types.ids import InstanceId
from xllm.types.instance import InstanceInfo
from xllm.types.wire import LoadReply

log = logging.getLogger(__name__)

Group = tuple[str, str]
"""(model, weight revision)."""

TICK_S = 0.5
_STOOD_STILL_S = 4 * TICK_S
"""A tick that comes this late says that this process was frozen or starved."""
_UP = ("ready", "degraded", "suspect")
"""States of an instance that has not been given up: a moment of silence changes no group."""


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
        self._group: Group | None = None
        self._vocab_size = 0
        self._servable: set[Group] = set()
        """Groups that may be served."""
        self._ticked_s: float | None = None
        self._changed: set[InstanceId] = set()
        """Instances whose picture is out of date."""
        self._pictures: dict[Group, dict[InstanceId, InstanceView]] | None = None
        """Per group, ordered by id; None: who is where has changed."""
        self._steady_until_s = math.inf
        """When the first picture goes out of date by itself."""
        self.refused: dict[InstanceId, str] = {}
        """Published instances that cannot be used, and why."""

    def __iter__(self) -> Iterator[Instance]:
        return iter([self._instances[key] for key in sorted(self._instances)])

    @property
    def group(self) -> Group | None:
        """The served group; None: no instance that may be served has joined yet."""
        return self._group

    def served(self) -> list[Instance]:
        """Instances of the served group, ordered by id."""
        return self.members(self._group)

    def members(self, group: Group | None) -> list[Instance]:
        """Instances of a group, ordered by id."""
        return [instance for instance in self if instance.info.group == group]

    def add(self, info: InstanceInfo) -> Instance:
        """Make an instance known, or return the one there is.

        Raises:
            ConfigError: it names blocks or tokens differently from the others of its group.
        """
        try:
            self.check(info)
        except ConfigError as error:
            self.refused[info.id] = error.message
            raise
        self.refused.pop(info.id, None)
        if self._may_serve(info):
            self._servable.add(info.group)
            if self._group is None:
                self._group, self._vocab_size = info.group, info.vocab_size
        known = self._instances.get(info.id)
        if known is None:
            known = Instance(info, self._clock, self._stall_timeout_s, self._patience, self._changed)
            self._instances[info.id] = known
            self._pictures = None
        return known

    def check(self, info: InstanceInfo) -> None:
        """Raise ConfigError where an instance names blocks or tokens differently from the others of its group."""
        for other in self._instances.values():
            if other.info.group == info.group and other.info.id != info.id:
                _check_same_names(other.info, info)

    def remove(self, instance_id: InstanceId) -> None:
        """Forget an instance."""
        gone = self._instances.pop(instance_id, None)
        self._pictures = None
        self.refused.pop(instance_id, None)
        if gone is not None and gone.info.group != self._group and not self.members(gone.info.group):
            self._servable.discard(gone.info.group)

    def get(self, instance_id: InstanceId) -> Instance | None:
        """An instance by id."""
        return self._instances.get(instance_id)

    def on_connected(self, info: InstanceInfo) -> None:
        """A connection to a known instance is up."""
        instance = self._instances.get(info.id)
        if instance is not None:
            was_ready = instance.state == "ready"
            if info.group != instance.info.group:
                self._pictures = None
            instance.on_connected(info)
            self._welcome(instance, was_ready)

    def on_heartbeat(self, instance_id: InstanceId, reply: LoadReply) -> None:
        """An instance told its load and health."""
        instance = self._instances.get(instance_id)
        if instance is not None:
            was_ready = instance.state == "ready"
            instance.on_heartbeat(reply)
            self._welcome(instance, was_ready)

    def tick(self) -> None:
        """Call every ``TICK_S``: notices when this process itself stood still, and when another group takes over."""
        now_s = self._clock.now()
        if self._ticked_s is not None and now_s - self._ticked_s > _STOOD_STILL_S:
            for instance in self._instances.values():
                instance.forgive(now_s - self._ticked_s - TICK_S)
        self._ticked_s = now_s
        self._choose_group()

    def view(self, group: Group | None = None) -> ClusterView:
        """A group now; the served one when none is named."""
        return ClusterView(instances=self.pictures(group))

    def pictures(self, group: Group | None = None) -> tuple[InstanceView, ...]:
        """The instances of a group now, ordered by id; of the served one when none is named."""
        now_s = self._clock.now()
        if self._pictures is None or now_s >= self._steady_until_s:
            self._pictures = {}
            self._steady_until_s = math.inf
            self._changed.update(self._instances)
        for name in sorted(self._changed):
            instance = self._instances.get(name)
            if instance is not None:
                self._pictures.setdefault(instance.info.group, {})[name] = instance.view()
                self._steady_until_s = min(self._steady_until_s, instance.steady_until_s)
        self._changed.clear()
        wanted = group or self._group
        return () if wanted is None else tuple(self._pictures.get(wanted, {}).values())

    # -- private --

    def _welcome(self, instance: Instance, was_ready: bool) -> None:
        """Who has become ready is not owed what it missed, and may bring its group to the fore."""
        if was_ready or instance.state != "ready":
            return
        others = [
            each.num_routed
            for each in self._instances.values()
            if each is not instance and each.info.group == instance.info.group and each.state == "ready"
        ]
        instance.catch_up(min(others, default=0))
        self._choose_group()

    def _choose_group(self) -> None:
        """See the module."""
        if self._group is None or len(self._servable) < 2:
            return
        up: dict[Group, int] = {}
        oldest_s: dict[Group, float] = {}
        ready: set[Group] = {self._group}
        for instance in self._instances.values():
            group, state = instance.info.group, instance.state
            is_alike = group in self._servable and group[0] == self._group[0]
            if is_alike and instance.info.vocab_size == self._vocab_size and state in _UP:
                up[group] = up.get(group, 0) + 1
                started_s = instance.info.started_unix_s
                oldest_s[group] = min(oldest_s.get(group, started_s), started_s)
                if state == "ready":
                    ready.add(group)
        best = max(ready, key=lambda group: (up.get(group, 0), oldest_s.get(group, 0.0), group))
        if best != self._group:
            log.info(
                "revision %r takes over from %r: new requests go to %d instances of it",
                best[1],
                self._group[1],
                up[best],
            )
            self._group = best


def _check_same_names(first: InstanceInfo, second: InstanceInfo) -> None:
    for name in ("vocab_size", "block_size", "hash_version"):
        ours, theirs = getattr(first, name), getattr(second, name)
        if ours != theirs:
            raise ConfigError(
                f"instance {second.id} has {name} {theirs!r}, instance {first.id} has {ours!r}",
                hint="start all engines of one model with the same block size and version",
            )
