"""SamplingColumns: the sampling parameters of every persistent row, as columns, so that a step gathers them at once.

Columns of length R. Parameters of variable length (``logit_bias``) are kept in a dict that most rows are not in.

INVARIANTS
- ``add`` overwrites every column of its row.
- ``seeds`` holds 64 bits, two's complement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xllm.types.request import Request

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

NO_LOGPROBS = -1


class SamplingColumns:
    """One column per parameter; see the module's invariants."""

    def __init__(self, max_rows: int) -> None:
        self.temperature: FloatArray = np.zeros(max_rows, dtype=np.float32)
        self.top_p: FloatArray = np.ones(max_rows, dtype=np.float32)
        self.top_k: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.min_p: FloatArray = np.zeros(max_rows, dtype=np.float32)
        self.presence: FloatArray = np.zeros(max_rows, dtype=np.float32)
        self.frequency: FloatArray = np.zeros(max_rows, dtype=np.float32)
        self.repetition: FloatArray = np.ones(max_rows, dtype=np.float32)
        self.seeds: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.choices: IntArray = np.zeros(max_rows, dtype=np.int64)
        self.num_logprobs: IntArray = np.full(max_rows, NO_LOGPROBS, dtype=np.int64)
        self.num_prompt_logprobs: IntArray = np.full(max_rows, NO_LOGPROBS, dtype=np.int64)
        self.needs_penalties: BoolArray = np.zeros(max_rows, dtype=np.bool_)
        self.has_bias: BoolArray = np.zeros(max_rows, dtype=np.bool_)
        self.biases: dict[int, tuple[IntArray, FloatArray]] = {}

    def add(self, row: int, request: Request, choice: int) -> None:
        """Set all columns of a row."""
        params = request.sampling
        self.temperature[row] = params.temperature
        self.top_p[row] = params.top_p
        self.top_k[row] = max(params.top_k, 0)
        self.min_p[row] = params.min_p
        self.presence[row] = params.presence_penalty
        self.frequency[row] = params.frequency_penalty
        self.repetition[row] = params.repetition_penalty
        self.seeds[row] = _to_int64(request.seed)
        self.choices[row] = choice
        self.num_logprobs[row] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self.num_prompt_logprobs[row] = (
            NO_LOGPROBS if params.prompt_logprobs is None else params.prompt_logprobs
        )
        self.needs_penalties[row] = params.needs_penalties
        self.has_bias[row] = bool(params.logit_bias)
        self.biases.pop(row, None)
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64, count=len(params.logit_bias))
            values = np.fromiter(params.logit_bias.values(), dtype=np.float32, count=len(params.logit_bias))
            self.biases[row] = (ids, values)

    def free(self, row: int) -> None:
        """Drop what a row holds beyond its columns."""
        self.biases.pop(row, None)


def _to_int64(value: int) -> int:
    """The low 64 bits, two's complement."""
    low = value & (2**64 - 1)
    return low - 2**64 if low >= 2**63 else low
