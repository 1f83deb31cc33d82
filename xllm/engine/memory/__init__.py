"""Memory the engine holds for longer than a step.

kv_pool.py   the KV tensors of every layer, addressed by block number
"""

from __future__ import annotations

from xllm.engine.memory.kv_pool import KVPool, LayerKV

__all__ = ["KVPool", "LayerKV"]
