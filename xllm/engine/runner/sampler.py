"""Sampler: binds the sampling kernels to persistent rows: from a step's logits to its samples.

    raw logits -> (log-probabilities) -> bias -> penalties -> mask -> greedy, or filters and counter-based noise

A sample depends on its own row only: the noise is a function of (seed, choice, position, token id), so the same
request gives the same tokens in any batch, after a preemption and on another instance.

INVARIANTS
- Rows that ask for nothing cost one argmax. Work of a feature is done for the rows that ask for it.
- Raw logits are scored before anything changes them.
- A row whose logits are NaN, or all forbidden, is an error of that row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from xllm.engine.kernels import Kernel
from xllm.engine.kernels.penalties.reference import penalise as penalise_with_torch
from xllm.engine.kernels.sampling import pick_largest, sample_gumbel
from xllm.engine.kernels.scoring.reference import score as score_with_torch
from xllm.engine.runner.logprobs import score_tokens
from xllm.engine.runner.masks import apply_mask
from xllm.engine.runner.model_input import to_device
from xllm.engine.runner.penalties import Penalties
from xllm.engine.runner.rows import IntArray, PersistentRows
from xllm.engine.runner.sampling_columns import NO_LOGPROBS
from xllm.engine.runner.step_plan import StepPlan
from xllm.types.batch import StepMask
from xllm.types.output import PositionLogprobs

_NO_TOKENS = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class Samples:
    """Samples of a step, N of them, in batch order."""

    tokens: IntArray = field(default_factory=lambda: _NO_TOKENS)
    """``[N]``; meaningless where there is an error."""
    logprobs: dict[int, PositionLogprobs] = field(default_factory=dict)
    """By sample, for rows that asked."""
    errors: list[tuple[int, str]] = field(default_factory=list)
    """(sample, what is wrong)."""

    def per_row(
        self, plan: StepPlan
    ) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[PositionLogprobs, ...] | None, ...]]:
        """Tokens and log-probabilities aligned with the scheduled rows; a row with an error has none."""
        tokens: list[tuple[int, ...]] = [()] * len(plan.rows)
        logprobs: list[tuple[PositionLogprobs, ...] | None] = [None] * len(plan.rows)
        for index, (owner, token) in enumerate(
            zip(plan.sample_owner.tolist(), self.tokens.tolist(), strict=False)
        ):
            tokens[owner] += (token,)
            scored = self.logprobs.get(index) if self.logprobs else None
            if scored is not None:
                logprobs[owner] = (*(logprobs[owner] or ()), scored)
        for index, _ in self.errors:
            owner = int(plan.sample_owner[index])
            tokens[owner], logprobs[owner] = (), None
        return tuple(tokens), tuple(logprobs) if self.logprobs else ()


class Sampler:
    """Samples from logits by the parameters of persistent rows; see the module."""

    def __init__(
        self,
        rows: PersistentRows,
        sample: Kernel = sample_gumbel,
        *,
        pick: Kernel = pick_largest,
        penalise: Kernel = penalise_with_torch,
        score: Kernel = score_with_torch,
    ) -> None:
        self._rows = rows
        self._sample = sample
        self._pick = pick
        self._score = score
        self._penalties = Penalties(rows, penalise)

    def sample(self, logits: torch.Tensor, plan: StepPlan, mask: StepMask | None) -> Samples:
        """Draw one token per logit row.

        Args:
            logits: float32 ``[N, V]``, raw; changed in place.
            plan: the step the logits belong to.
            mask: the step's late input, or None.
        """
        columns = self._rows.sampling
        row_ids = plan.rows[plan.sample_owner]
        scored = np.flatnonzero(columns.num_logprobs[row_ids] != NO_LOGPROBS)
        penalised = np.flatnonzero(columns.needs_penalties[row_ids])
        raw = logits
        raw_rows: torch.Tensor | None = to_device(scored, logits.device)
        if len(scored) and (len(penalised) or mask is not None or columns.has_bias[row_ids].any()):
            raw, raw_rows = logits[raw_rows], None
        self._add_biases(logits, row_ids)
        if len(penalised):
            self._penalties.apply(logits, penalised, row_ids[penalised])
        if mask is not None:
            apply_mask(logits, mask)
        best, chosen = self._pick(logits)
        errors = _find_errors(best.cpu().numpy())
        drawn = np.flatnonzero(columns.temperature[row_ids] > 0)
        if len(drawn):
            chosen[to_device(drawn, logits.device)] = self._draw(logits, drawn, row_ids[drawn], plan)
        samples = Samples(chosen.cpu().numpy(), errors=errors)
        if len(scored):
            picked = chosen[to_device(scored, logits.device)]
            num_top = columns.num_logprobs[row_ids[scored]].tolist()
            scores = score_tokens(raw, picked, num_top, rows=raw_rows, score=self._score)
            samples.logprobs = dict(zip(scored.tolist(), scores, strict=True))
        return samples

    def remember(self, samples: Samples, plan: StepPlan) -> None:
        """Extend the histories by the samples that follow a row's last token."""
        if not len(samples.tokens):
            return
        owners, positions, tokens = plan.sample_owner, plan.sample_positions, samples.tokens
        extends = plan.is_last_sample
        if samples.errors:
            extends[[index for index, _ in samples.errors]] = False
        if not extends.all():
            owners, positions, tokens = owners[extends], positions[extends], tokens[extends]
        self._rows.append_samples(plan.rows[owners], positions, tokens)

    def _add_biases(self, logits: torch.Tensor, row_ids: IntArray) -> None:
        columns = self._rows.sampling
        if not columns.biases:
            return
        for i in np.flatnonzero(columns.has_bias[row_ids]).tolist():
            ids, values = columns.biases[int(row_ids[i])]
            logits[i].index_add_(0, to_device(ids, logits.device), to_device(values, logits.device))

    def _draw(
        self, logits: torch.Tensor, samples: IntArray, row_ids: IntArray, plan: StepPlan
    ) -> torch.Tensor:
        """Tokens ``[K]`` of the K samples that are not greedy."""
        columns = self._rows.sampling
        device = logits.device
        drawn: torch.Tensor = self._sample(
            logits if len(samples) == len(logits) else logits[to_device(samples, device)],
            temperature=to_device(columns.temperature[row_ids], device),
            top_k=to_device(columns.top_k[row_ids], device),
            top_p=to_device(columns.top_p[row_ids], device),
            min_p=to_device(columns.min_p[row_ids], device),
            seeds=to_device(columns.seeds[row_ids], device),
            choices=to_device(columns.choices[row_ids], device),
            positions=to_device(plan.sample_positions[samples], device),
        )
        return drawn


def _find_errors(best: NDArray[np.float32]) -> list[tuple[int, str]]:
    """Rows whose largest logit is no number: NaN spreads to the maximum, and so does a mask that forbids all."""
    finite = np.isfinite(best)
    if finite.all():
        return []
    broken, empty = "the model produced NaN or infinite logits", "no token is allowed: every id is masked"
    return [(int(i), empty if best[i] == -np.inf else broken) for i in np.flatnonzero(~finite)]
