"""KV events: what entered and left an instance's prefix cache, for routers that know where a prefix lives.

Events carry a sequence number per instance incarnation; a gap means: ask for a snapshot.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from xllm.types.ids import BlockHash


class KvEvent(Struct, frozen=True, array_like=True):
    """One change. ``parent`` lets an index check that a stored chain is contiguous."""

    kind: Literal["stored", "removed", "cleared"]
    hashes: tuple[BlockHash, ...] = ()
    parent: BlockHash | None = None
    group: int = 0
    tier: Literal["device", "host", "disk"] = "device"


class KvEventBatch(Struct, frozen=True, array_like=True):
    """Events of one step; ``sequence`` counts batches without gaps."""

    sequence: int
    events: tuple[KvEvent, ...]
