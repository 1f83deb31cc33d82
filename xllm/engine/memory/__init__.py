"""Memory the engine holds for longer than a step.

kv_memory.py   the protocol of KV memories
kv_pool.py     layout ``paged``: the KV tensors of every layer, addressed by block number
touch_ahead.py memory nobody has used yet is brought in while nothing runs
xtensor.py     layout ``xtensor``: one stretch of addresses per sequence over physical pages
page_map.py    what is mapped where; carries out page orders, ahead ones in the background
mapper.py      the system calls
"""

from __future__ import annotations

from xllm.engine.memory.kv_memory import KVMemory, LayerKV
from xllm.engine.memory.kv_pool import KVPool, can_be_paired
from xllm.engine.memory.xtensor import XTensor

__all__ = ["KVMemory", "KVPool", "LayerKV", "XTensor", "can_be_paired"]
