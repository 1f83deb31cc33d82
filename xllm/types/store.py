"""Keys, leases and events of a registry's store."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class StoreItem(Struct, frozen=True, kw_only=True):
    """One key at one revision."""

    key: str
    value: bytes
    revision: int
    """Of the write that made it so."""
    lease: int = 0
    """The lease it lives under; 0: none."""


class StoreEvent(Struct, frozen=True, kw_only=True):
    """One change of one key; the item of a delete has no value, and the revision of the delete."""

    kind: Literal["put", "delete"]
    item: StoreItem


class Snapshot(Struct, frozen=True, kw_only=True):
    """Every key under a prefix at one revision, ordered by key."""

    revision: int
    """Of the store: a watch after it misses nothing."""
    items: tuple[StoreItem, ...]


class Lease(Struct, frozen=True, kw_only=True):
    """A lease as it was granted or renewed."""

    id: int
    ttl_s: float
    """It ends this long after the grant or the last renewal."""
