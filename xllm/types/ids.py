"""Names used across the wire. Plain types: NewType only where two strings or bytes could be mixed up."""

from __future__ import annotations

from typing import NewType

RequestId = str
InstanceId = str
BlockId = int
RowId = int
SeqId = int
StepId = int

BlockHash = NewType("BlockHash", bytes)
"""16 bytes; see :mod:`xllm.types.block_hash`."""
