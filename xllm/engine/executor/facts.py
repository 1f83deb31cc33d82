"""What was found out while an executor was built."""

from __future__ import annotations

from dataclasses import dataclass

from xllm.types.kv_layout import KVLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorFacts:
    """What an executor found out while it was built; the brain is built from it."""

    layout: KVLayout
    """Of the KV pool."""
    num_blocks: int
    """Allocated."""
    vocab_size: int
    """Logits per position."""
    max_model_len: int
    """Tokens a row can hold."""
    device_name: str
    """For people."""
    weights_bytes: int
    """Held in memory."""
    kv_bytes: int
    """Held in memory."""
    load_s: float
    """From the first byte of weights read to the last one placed."""
