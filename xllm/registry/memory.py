"""MemoryRegistry: instances of one process's own making. No lease: who publishes lives as long as the registry.

INVARIANTS
- A watcher sees, per id, added and removed in turn, beginning with added.
- Callbacks run inside ``publish`` and ``withdraw``, in the order of subscription.
"""

from __future__ import annotations

from collections.abc import Callable

from xllm.registry.registry import InstanceRecord, OnEvent, RegistryEvent
from xllm.types.ids import InstanceId


class MemoryRegistry:
    """See :class:`~xllm.registry.registry.InstanceRegistry`; used from one thread."""

    def __init__(self) -> None:
        self._records: dict[InstanceId, InstanceRecord] = {}
        self._watchers: dict[int, OnEvent] = {}
        self._next_key = 0

    def publish(self, record: InstanceRecord) -> None:
        """Make an instance known."""
        self.withdraw(record.info.id)
        self._records[record.info.id] = record
        self._tell(RegistryEvent(kind="added", record=record))

    def withdraw(self, instance_id: InstanceId) -> None:
        """Forget an instance."""
        record = self._records.pop(instance_id, None)
        if record is not None:
            self._tell(RegistryEvent(kind="removed", record=record))

    def watch(self, on_event: OnEvent) -> Callable[[], None]:
        """Tell what is there, then every change; returns the unsubscribe."""
        key = self._next_key
        self._next_key += 1
        for record in list(self._records.values()):
            on_event(RegistryEvent(kind="added", record=record))
        self._watchers[key] = on_event

        def unsubscribe() -> None:
            self._watchers.pop(key, None)

        return unsubscribe

    def _tell(self, event: RegistryEvent) -> None:
        for watcher in list(self._watchers.values()):
            watcher(event)
