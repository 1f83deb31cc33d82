"""KVLayout: what the cache holds per token or per sequence, layer by layer.

A layout is a tuple of groups. Layers of one group share a block table. ``full`` and ``window`` groups hold one entry
per token; ``latent`` groups one compressed entry; ``state`` groups (recurrent layers) two slots per sequence: read one,
write the other, flip when the step commits.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import msgspec
from msgspec import Struct

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "float8_e4m3": 1}

GroupKind = Literal["full", "window", "latent", "state"]
KVOrder = Literal["tokens", "pairs"]
"""How the tokens of a block lie: one after the other, or interleaved for bf16 dot products (see the KV pool)."""


class KVComponent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tensor of an entry: K, V, a latent, index keys, or a recurrent state."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of one entry of one layer, e.g. (num_kv_heads, head_dim)."""

    @property
    def num_bytes(self) -> int:
        """Bytes of one entry."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


class KVGroup(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Layers that share one block table."""

    name: str
    layers: tuple[int, ...]
    kind: GroupKind
    components: tuple[KVComponent, ...]
    owner: Literal["target", "draft"] = "target"
    window: int | None = None
    """Tokens a layer looks back; only for ``window`` groups."""
    sharding: Literal["kv_heads", "replicated"] = "kv_heads"
    quantization: str = ""
    """Reserved: scheme of a quantised cache; its scales count into the components."""
    tokens_per_entry: int = 1
    """Reserved: above 1 when entries summarise several tokens."""

    @property
    def bytes_per_entry(self) -> int:
        """Bytes of one entry over all layers of the group."""
        return len(self.layers) * sum(c.num_bytes for c in self.components)


class KVLayout(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every group, and the block size in tokens that all of them share."""

    block_size: int
    groups: tuple[KVGroup, ...]
    order: KVOrder = "tokens"

    def bytes_per_block(self, group: int = 0) -> int:
        """Bytes of one block: ``block_size`` entries, or one state."""
        g = self.groups[group]
        entries = 1 if g.kind == "state" else self.block_size // g.tokens_per_entry
        return entries * g.bytes_per_entry

    @property
    def layout_hash(self) -> str:
        """Two instances may exchange KV only if this is equal."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()[:16]


def build_attention_layout(
    *,
    block_size: int,
    num_layers: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str,
    window: int | None = None,
) -> KVLayout:
    """The layout of a plain decoder: one group, K and V per layer."""
    shape = (num_kv_heads, head_dim)
    group = KVGroup(
        name="attention",
        layers=tuple(range(num_layers)),
        kind="full" if window is None else "window",
        components=(
            KVComponent(name="k", dtype=dtype, shape=shape),
            KVComponent(name="v", dtype=dtype, shape=shape),
        ),
        window=window,
    )
    return KVLayout(block_size=block_size, groups=(group,))
