"""``penalise`` with torch: one gather and one scatter over all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class PenalisedRow:
    """What one row of logits is penalised for."""

    index: int
    """Of the row among the logits."""
    ids: npt.NDArray[np.int64]
    """Distinct tokens of prompt and output."""
    counts: npt.NDArray[np.float32]
    """How often each was output."""
    frequency: float
    presence: float
    repetition: float


def penalise(logits: torch.Tensor, rows: Sequence[PenalisedRow]) -> None:
    """Change ``logits [N, V]`` (float32) in place: divided or multiplied by the repetition penalty, towards less
    likely; then minus frequency times the count, and minus presence where there is one."""
    sizes = np.array([len(row.ids) for row in rows])

    def spread(values: Sequence[float] | Sequence[int], dtype: type) -> npt.NDArray[np.generic]:
        return np.repeat(np.array(values, dtype=dtype), sizes)

    ids = np.concatenate([row.ids for row in rows])
    counts = np.concatenate([row.counts for row in rows])
    minus = counts * spread([row.frequency for row in rows], np.float32)
    minus += (counts > 0) * spread([row.presence for row in rows], np.float32)

    def tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(logits.device)

    at = (tensor(spread([row.index for row in rows], np.int64)), tensor(ids))
    factor = tensor(spread([row.repetition for row in rows], np.float32))
    values = logits[at]
    logits[at] = torch.where(values > 0, values / factor, values * factor) - tensor(minus)
