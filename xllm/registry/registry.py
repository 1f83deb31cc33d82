"""InstanceRegistry: the Protocol between engines that publish themselves and services that watch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from xllm.types.instance import InstanceInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceRecord:
    """What is published about one incarnation of an instance."""

    info: InstanceInfo
    token: str = ""
    """Shared secret of its RPC; never logged."""
    is_fenced: bool = False
    """A new incarnation is published anew: whoever answers at the address as another one is a stranger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryEvent:
    """One change. A record that was there before the watch began comes as ``added``.

    ``lapsed``: its lease ended without a farewell, so it may be dead, or the registry was; ``added`` again when the
    same incarnation is back.
    """

    kind: Literal["added", "lapsed", "removed"]
    record: InstanceRecord


OnEvent = Callable[[RegistryEvent], None]


class InstanceRegistry(Protocol):
    """Present instances and their changes. ``watch`` misses nothing: what is there is told first."""

    def watch(self, on_event: OnEvent) -> Callable[[], None]:
        """Call ``on_event`` for every record there is, now, and for every later change; returns the unsubscribe."""
        ...
