"""``penalise`` of the CPU library: each row's own ids, in place, nothing copied (csrc/scoring.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from xllm.engine.kernels.penalties.reference import PenalisedRow
from xllm.engine.platform.native import PenaltyArgs, required_library


def penalise(logits: torch.Tensor, rows: Sequence[PenalisedRow]) -> None:
    """See the reference."""
    assert logits.dtype == torch.float32 and logits.is_contiguous(), "float32 [N, V], dense"
    library = required_library()
    args = (PenaltyArgs * len(rows))(*(_args(row) for row in rows))
    threads = library.num_threads(sum(len(row.ids) for row in rows))
    library.lib.xllm_penalise(logits.data_ptr(), logits.shape[1], args, len(rows), threads)


def _args(row: PenalisedRow) -> PenaltyArgs:
    return PenaltyArgs(
        row.ids.ctypes.data,
        row.counts.ctypes.data,
        row.index,
        len(row.ids),
        row.frequency,
        row.presence,
        row.repetition,
    )
