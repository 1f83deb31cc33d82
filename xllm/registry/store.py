"""Store: the Protocol of a registry's key-value store, and the bounds every implementation enforces.

A store has one revision, which grows with every write. Keys may live under a lease: when its holder stops renewing
it, they are deleted. Every call has a deadline and raises :class:`~xllm.errors.RegistryError` when the store cannot
be reached in time or answers nonsense; nothing else escapes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from xllm.errors import RegistryError
from xllm.types.store import Lease, Snapshot, StoreEvent

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 1024 * 1024
"""etcd refuses requests of more than 1.5 MiB; every store keeps the same bound."""
MIN_TTL_S, MAX_TTL_S = 0.1, 86_400.0

Watch = AsyncGenerator[tuple[StoreEvent, ...], None]


class Store(Protocol):
    """See the module."""

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write a key; returns the store's new revision.

        Raises:
            LeaseExpired: the lease is gone.
        """
        ...

    async def try_set(
        self, key: str, value: bytes | None, *, expected_revision: int, lease: int = 0
    ) -> int | None:
        """Compare-and-set: write (or delete, with value None) if the key's last write has ``expected_revision``.

        0 expects that the key is not there. Returns the new revision, or None when refused. After a RegistryError
        the write may or may not have happened: read before trying again.

        Raises:
            LeaseExpired: the lease is gone.
        """
        ...

    async def get_prefix(self, prefix: str) -> Snapshot:
        """Every key under ``prefix``, now."""
        ...

    def watch(self, prefix: str, after_revision: int) -> Watch:
        """Every later change of keys under ``prefix``, in order, without gap; ``aclose`` it at the end.

        Raises (from the iteration):
            Compacted: the events after ``after_revision`` are no longer all kept.
            RegistryError: the store is gone; watch again after listing.
        """
        ...

    async def grant_lease(self, ttl_s: float) -> Lease:
        """A new lease; the store may grant more time than asked."""
        ...

    async def keep_alive(self, lease: int) -> Lease:
        """Begin the lease's time anew.

        Raises:
            LeaseExpired: it is gone.
        """
        ...

    async def revoke_lease(self, lease: int) -> None:
        """End a lease and delete its keys; an unknown one is fine."""
        ...

    async def close(self) -> None:
        """Let go of connections; watches end with a RegistryError."""
        ...


def check_key(key: str) -> None:
    """Raise RegistryError for a key no store takes."""
    num_bytes = len(key.encode())
    if not 0 < num_bytes <= MAX_KEY_BYTES:
        raise RegistryError(f"a registry key of {num_bytes} bytes", hint=f"use 1 to {MAX_KEY_BYTES} bytes")


def check_value(value: bytes | None) -> None:
    """Raise RegistryError for a value no store takes."""
    if value is not None and len(value) > MAX_VALUE_BYTES:
        raise RegistryError(
            f"a registry value of {len(value)} bytes", hint=f"use at most {MAX_VALUE_BYTES} bytes"
        )


def check_ttl(ttl_s: float) -> None:
    """Raise RegistryError for a lease time no store grants."""
    if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise RegistryError(f"a lease of {ttl_s} s", hint=f"use {MIN_TTL_S:g} to {MAX_TTL_S:g} s")
