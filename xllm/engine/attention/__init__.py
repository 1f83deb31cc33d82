"""Attention over the KV cache: what a step's attention needs to know, and the backends that use it.

metadata.py    AttentionMetadata and its groups: a step's rows, planned once for all layers
step_index.py  StepIndex: a step's rows as arrays, what every planner begins with
planner.py     plans the metadata from query lengths, sequence lengths and block tables
backend.py     the protocols of planners and backends
reference.py   the torch backend: write new keys and values, then attend group by group
cpu_native.py  planner and backend of the CPU kernels, for both layouts
contiguous.py  planner and backend for the contiguous layout: base and stride, row by row
"""

from __future__ import annotations

from xllm.engine.attention.backend import AttentionBackend, StepPlanner
from xllm.engine.attention.contiguous import ContiguousAttention, ContiguousPlanner
from xllm.engine.attention.cpu_native import NativeAttention, NativePlanner
from xllm.engine.attention.metadata import AttentionMetadata, RowGroup
from xllm.engine.attention.planner import AttentionPlanner
from xllm.engine.attention.reference import ReferenceAttention

__all__ = [
    "AttentionBackend",
    "AttentionMetadata",
    "AttentionPlanner",
    "ContiguousAttention",
    "ContiguousPlanner",
    "NativeAttention",
    "NativePlanner",
    "ReferenceAttention",
    "RowGroup",
    "StepPlanner",
]
