"""The only definition of a block's identity.

A full block of ``block_size`` tokens is named by a chained SHA-256, cut to 16 bytes, over: its parent's name, its token
ids, and the media items that overlap it. The chain starts from a root over hash version, block size, weight revision,
adapter and salt, so nothing is ever shared across those. A collision would serve another prompt's KV: hence a
cryptographic hash, not a fast one (SHA instructions make it about 0.5 us per 16 tokens).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from xllm.types.ids import BlockHash
from xllm.types.request import MediaItem, MediaSpan

HASH_VERSION = 1
_NUM_BYTES = 16


def root_hash(
    *, block_size: int, weight_revision: str = "", adapter: str | None = None, salt: str = ""
) -> BlockHash:
    """Parent of the first block; strings are length-prefixed so that no two inputs look alike."""
    digest = hashlib.sha256(f"xllm-block-{HASH_VERSION}:{block_size}".encode())
    for part in (weight_revision, adapter or "", salt):
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "little") + raw)
    return BlockHash(digest.digest()[:_NUM_BYTES])


def next_hash(parent: BlockHash, token_ids: Sequence[int], media_key: bytes = b"") -> BlockHash:
    """Name of the block that follows ``parent`` and holds ``token_ids`` (exactly one block of them)."""
    return BlockHash(
        hashlib.sha256(parent + array("I", token_ids).tobytes() + media_key).digest()[:_NUM_BYTES]
    )


def media_key(start: int, end: int, items: Sequence[MediaItem], spans: Sequence[MediaSpan]) -> bytes:
    """What of the media lies in positions [start, end): item hash and the offset inside the item, per overlap."""
    parts = []
    for span in spans:
        lo, hi = max(start, span.offset), min(end, span.offset + span.num_tokens)
        if lo < hi:
            inner = span.embed_start + lo - span.offset
            parts.append(
                items[span.item].hash + inner.to_bytes(8, "little") + (lo - start).to_bytes(4, "little")
            )
    return b"".join(parts)


def block_hashes(
    token_ids: Sequence[int],
    *,
    block_size: int,
    root: BlockHash,
    media: Sequence[MediaItem] = (),
    media_spans: Sequence[MediaSpan] = (),
) -> tuple[BlockHash, ...]:
    """Names of all full blocks of ``token_ids``, in order; a partial tail has none."""
    ids = array("I", token_ids)
    raw, width, parent = memoryview(ids.tobytes()), ids.itemsize * block_size, root
    out = []
    for index in range(len(ids) // block_size):
        start = index * block_size
        key = media_key(start, start + block_size, media, media_spans) if media_spans else b""
        chunk = raw[index * width : (index + 1) * width]
        parent = BlockHash(hashlib.sha256(b"".join((parent, chunk, key))).digest()[:_NUM_BYTES])
        out.append(parent)
    return tuple(out)
