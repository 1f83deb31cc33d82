"""InstanceRegistry: the Protocol between engines that publish themselves and services that watch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from xllm.types.ids import InstanceId
from xllm.types.instance import InstanceInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceRecord:
    """What is published about one incarnation of an instance."""

    info: InstanceInfo
    token: str = ""
    """Shared secret of its RPC; never logged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryEvent:
    """One change. A record that was there before the watch began comes as ``added``."""

    kind: Literal["added", "removed"]
    record: InstanceRecord


OnEvent = Callable[[RegistryEvent], None]


class InstanceRegistry(Protocol):
    """Present instances and their changes. ``watch`` misses nothing: what is there is told first."""

    def publish(self, record: InstanceRecord) -> None:
        """Make an instance known; a second record of the same id replaces the first (removed, then added)."""
        ...

    def withdraw(self, instance_id: InstanceId) -> None:
        """Forget an instance; an unknown id is fine."""
        ...

    def watch(self, on_event: OnEvent) -> Callable[[], None]:
        """Call ``on_event`` for every record there is, now, and for every later change; returns the unsubscribe."""
        ...
