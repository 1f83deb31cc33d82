"""Penalties on tokens that a sequence already holds, over the distinct ids of the rows that ask for it.

Repetition (Keskar et al. 2019, arXiv 1909.05858, section 4.1) looks at prompt and output; frequency and presence (the
OpenAI API's definition) at the output only.

INVARIANTS
- A row's counts are built from its history when first needed and then follow it token by token; they belong to one
  introduction of the row (its generation) and are rebuilt for the next.
"""

from __future__ import annotations

import numpy as np
import torch

from xllm.engine.kernels import Kernel
from xllm.engine.kernels.penalties.reference import PenalisedRow
from xllm.engine.kernels.penalties.reference import penalise as penalise_with_torch
from xllm.engine.runner.rows import IntArray, PersistentRows


class _Counts:
    """Distinct ids of one row, and how often each was output."""

    __slots__ = ("counts", "ids", "num_counted", "num_distinct", "place")

    def __init__(self, prompt: IntArray, output: IntArray) -> None:
        distinct = np.unique(np.concatenate((prompt, output)))
        self.num_distinct = len(distinct)
        self.num_counted = len(prompt) + len(output)
        self.ids = np.zeros(len(distinct) + 64, dtype=np.int64)
        self.ids[: len(distinct)] = distinct
        self.counts = np.zeros(len(self.ids), dtype=np.float32)
        self.counts[: len(distinct)] = np.bincount(np.searchsorted(distinct, output), minlength=len(distinct))
        self.place = {int(token): i for i, token in enumerate(distinct)}

    def append(self, token: int) -> None:
        """One more output token."""
        self.num_counted += 1
        place = self.place.get(token)
        if place is None:
            if self.num_distinct == len(self.ids):
                self.ids = np.concatenate((self.ids, np.zeros_like(self.ids)))
                self.counts = np.concatenate((self.counts, np.zeros_like(self.counts)))
            place = self.place[token] = self.num_distinct
            self.ids[place] = token
            self.num_distinct += 1
        self.counts[place] += 1


class Penalties:
    """Counts of the rows that need them."""

    def __init__(self, rows: PersistentRows, penalise: Kernel = penalise_with_torch) -> None:
        self._rows = rows
        self._penalise = penalise
        self._counts: dict[int, tuple[int, _Counts]] = {}

    def apply(self, logits: torch.Tensor, indices: IntArray, row_ids: IntArray) -> None:
        """Penalise in place.

        Args:
            logits: float32 ``[N, V]``.
            indices: ``[K]`` which of the N rows of logits.
            row_ids: ``[K]`` whose persistent rows they belong to.
        """
        sampling = self._rows.sampling
        penalised = []
        for index, row in zip(indices.tolist(), row_ids.tolist(), strict=True):
            known = self._follow(row)
            size = known.num_distinct
            penalties = (sampling.frequency[row], sampling.presence[row], sampling.repetition[row])
            penalised.append(
                PenalisedRow(index, known.ids[:size], known.counts[:size], *map(float, penalties))
            )
        self._penalise(logits, penalised)

    def _follow(self, row: int) -> _Counts:
        rows = self._rows
        generation = int(rows.generation[row])
        known = self._counts.get(row)
        if known is None or known[0] != generation:
            history = rows.history(row).astype(np.int64)
            split = int(rows.num_prompt_tokens[row])
            known = self._counts[row] = (generation, _Counts(history[:split], history[split:]))
        counts = known[1]
        for token in rows.history(row)[counts.num_counted :].tolist():
            counts.append(token)
        return counts
