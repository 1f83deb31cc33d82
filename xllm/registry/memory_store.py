"""MemoryStore: the embedded store as a synchronous state machine; time comes from a Clock.

INVARIANTS
- The revision grows by one with every write and every delete.
- A key is in its lease's set exactly while it lives under that lease; a lease that ended has no keys.
- ``_events`` holds, in order and without gap, every event after ``_compacted``.
- A watcher is told every event of its prefix after its revision, once, in order; its callback must not raise.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from xllm.base.clock import Clock
from xllm.errors import Compacted, LeaseExpired
from xllm.registry.store import check_key, check_ttl, check_value
from xllm.types.store import Lease, Snapshot, StoreEvent, StoreItem

MAX_EVENTS = 4096
OnEvents = Callable[[tuple[StoreEvent, ...]], None]


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    expires_s: float
    keys: set[str] = field(default_factory=set)


class MemoryStore:
    """See the module; the methods of :class:`~xllm.registry.store.Store`, without waiting."""

    def __init__(self, clock: Clock, *, max_events: int = MAX_EVENTS) -> None:
        self._clock = clock
        self._max_events = max_events
        self._revision = 0
        self._compacted = 0
        self._items: dict[str, StoreItem] = {}
        self._leases: dict[int, _Lease] = {}
        self._events: deque[StoreEvent] = deque()
        self._watchers: dict[int, tuple[str, OnEvents]] = {}
        self._next_watcher = 0

    def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key; returns the new revision."""
        check_key(key)
        check_value(value)
        self.expire()
        holder = self._find(lease) if lease else None
        self._detach(key)
        if holder is not None:
            holder.keys.add(key)
        self._revision += 1
        item = StoreItem(key=key, value=value, revision=self._revision, lease=lease)
        self._items[key] = item
        self._tell(StoreEvent(kind="put", item=item))
        return self._revision

    def try_set(self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0) -> int | None:
        """Compare-and-set; None when refused."""
        check_key(key)
        check_value(value)
        self.expire()
        if lease:
            self._find(lease)
        item = self._items.get(key)
        if (item.revision if item else 0) != expected_revision:
            return None
        if value is not None:
            return self.put(key, value, lease=lease)
        self._delete(key)
        return self._revision

    def get_prefix(self, prefix: str) -> Snapshot:
        """Every key under ``prefix``."""
        self.expire()
        items = tuple(self._items[key] for key in sorted(self._items) if key.startswith(prefix))
        return Snapshot(revision=self._revision, items=items)

    def watch(self, prefix: str, after_revision: int, on_events: OnEvents) -> Callable[[], None]:
        """Tell what happened after ``after_revision``, now, then every change; returns the unsubscribe.

        Raises:
            Compacted: it is not known what happened since, or the revision has not been yet (another store's).
        """
        self.expire()
        if not self._compacted <= after_revision <= self._revision:
            raise Compacted(
                f"events after revision {after_revision} are not kept"
                f" (kept: after {self._compacted} to {self._revision})"
            )
        past = tuple(
            event
            for event in self._events
            if event.item.revision > after_revision and event.item.key.startswith(prefix)
        )
        if past:
            on_events(past)
        key = self._next_watcher
        self._next_watcher += 1
        self._watchers[key] = (prefix, on_events)

        def unsubscribe() -> None:
            self._watchers.pop(key, None)

        return unsubscribe

    def grant_lease(self, ttl_s: float) -> Lease:
        """A new lease."""
        check_ttl(ttl_s)
        lease = secrets.randbits(62) + 1
        self._leases[lease] = _Lease(ttl_s, self._clock.now() + ttl_s)
        return Lease(id=lease, ttl_s=ttl_s)

    def keep_alive(self, lease: int) -> Lease:
        """Begin the lease's time anew."""
        self.expire()
        found = self._find(lease)
        found.expires_s = self._clock.now() + found.ttl_s
        return Lease(id=lease, ttl_s=found.ttl_s)

    def revoke_lease(self, lease: int) -> None:
        """End a lease and delete its keys."""
        found = self._leases.pop(lease, None)
        for key in sorted(found.keys) if found else ():
            self._delete(key)

    def expire(self) -> None:
        """End every lease whose time is over."""
        now_s = self._clock.now()
        for lease in [lease for lease, held in self._leases.items() if held.expires_s <= now_s]:
            self.revoke_lease(lease)

    def next_expiry_in_s(self) -> float | None:
        """When ``expire`` has something to do; None when there is no lease."""
        if not self._leases:
            return None
        return max(0.0, min(held.expires_s for held in self._leases.values()) - self._clock.now())

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold."""
        held = {(lease, key) for lease, found in self._leases.items() for key in found.keys}
        assert held == {(item.lease, key) for key, item in self._items.items() if item.lease}
        revisions = [event.item.revision for event in self._events]
        assert revisions == list(range(self._compacted + 1, self._revision + 1))

    # -- private --

    def _find(self, lease: int) -> _Lease:
        found = self._leases.get(lease)
        if found is None:
            raise LeaseExpired(f"lease {lease:x} is gone", hint="grant a new one and write its keys again")
        return found

    def _detach(self, key: str) -> None:
        item = self._items.get(key)
        held = self._leases.get(item.lease) if item else None
        if held is not None:
            held.keys.discard(key)

    def _delete(self, key: str) -> None:
        self._detach(key)
        if self._items.pop(key, None) is not None:
            self._revision += 1
            item = StoreItem(key=key, value=b"", revision=self._revision)
            self._tell(StoreEvent(kind="delete", item=item))

    def _tell(self, event: StoreEvent) -> None:
        self._events.append(event)
        while len(self._events) > self._max_events:
            self._compacted = self._events.popleft().item.revision
        for prefix, on_events in list(self._watchers.values()):
            if event.item.key.startswith(prefix):
                on_events((event,))
