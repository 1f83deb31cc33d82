"""``sample``: temperature, filters, then argmax of log-probability plus Gumbel noise.

Masks, logit bias and penalties have been applied to the logits before. The argmax of ``log p(v) + g(v)``
over the surviving ids is a draw from their renormalised distribution (Gumbel-max); the normaliser is the
same for all ids of a row and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xllm.engine.kernels.sampling.filters import find_survivors
from xllm.engine.kernels.sampling.noise import gumbel, row_keys

SAMPLE_OK = 0
SAMPLE_NAN = 1
"""A logit is NaN or +inf: the model's numbers broke."""
SAMPLE_EMPTY = 2
"""Every id is masked."""

GREEDY_BELOW = 1e-5
"""Temperatures below are greedy: dividing by them says nothing more."""
NOISE_CHUNK = 1 << 18
"""Elements of noise computed at once: small enough to stay in the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRows:
    """Parameters of N rows; host arrays ``[N]``."""

    temperature: npt.NDArray[np.float32]
    """0 = greedy."""
    top_k: npt.NDArray[np.int64]
    """0 = all."""
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]
    """64 bits, two's complement."""
    choices: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    """Of the sampled token in its sequence."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn; host arrays ``[N]``."""

    token_ids: npt.NDArray[np.int64]
    """Meaningless where there is an error, but always an id of the vocabulary."""
    errors: npt.NDArray[np.uint8]
    """``SAMPLE_OK``, ``SAMPLE_NAN`` or ``SAMPLE_EMPTY``."""


@torch.inference_mode()
def sample(logits: torch.Tensor, rows: SampleRows) -> Sampled:
    """Draw one token per row of ``logits``, float32 ``[N, V]``, which is left as it is.

    A row's result depends on its own logits and parameters only. Greedy rows take the largest logit, on a
    tie the lowest id.
    """
    peak, greedy_ids = logits.max(dim=-1)
    token_ids = greedy_ids.cpu().numpy()
    peak_on_host = peak.cpu().numpy()
    errors = np.zeros(len(token_ids), dtype=np.uint8)
    errors[np.isnan(peak_on_host) | (peak_on_host == np.inf)] = SAMPLE_NAN
    errors[peak_on_host == -np.inf] = SAMPLE_EMPTY
    is_drawn = (rows.temperature >= GREEDY_BELOW) & (errors == SAMPLE_OK)
    is_filtered = (rows.top_k > 0) & (rows.top_k < logits.shape[1])
    is_filtered |= (rows.top_p < 1) | (rows.min_p > 0)
    keys = row_keys(rows.seeds, rows.choices, rows.positions)
    open_rows = np.flatnonzero(is_drawn & ~is_filtered)
    if len(open_rows):
        token_ids[open_rows] = _draw_open(logits, peak, open_rows, rows, keys)
    filtered = np.flatnonzero(is_drawn & is_filtered)
    if len(filtered):
        token_ids[filtered] = _draw_filtered(logits, peak, filtered, rows, keys)
    return Sampled(token_ids, errors)


def _scaled(
    logits: torch.Tensor, peak: torch.Tensor, picked: npt.NDArray[np.int64], rows: SampleRows
) -> torch.Tensor:
    """Logits of some rows after temperature, shifted so that the largest is 0: no temperature overflows."""
    index = torch.from_numpy(picked).to(logits.device)
    temperature = torch.from_numpy(rows.temperature[picked]).to(logits.device)
    part = logits.index_select(0, index)
    return part.sub_(peak.index_select(0, index)[:, None]).div_(temperature[:, None])


def _draw_open(
    logits: torch.Tensor,
    peak: torch.Tensor,
    picked: npt.NDArray[np.int64],
    rows: SampleRows,
    keys: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int64]:
    """Rows without filters: noise for every id."""
    vocab_size = logits.shape[1]
    ids = torch.arange(vocab_size, dtype=torch.int32, device=logits.device)
    size = len(picked) if logits.is_cuda else max(NOISE_CHUNK // vocab_size, 1)
    drawn = []
    for begin in range(0, len(picked), size):
        part = picked[begin : begin + size]
        scores = _scaled(logits, peak, part, rows).add_(gumbel(keys[part], ids))
        drawn.append(scores.argmax(dim=-1))
    return torch.cat(drawn).cpu().numpy()


def _draw_filtered(
    logits: torch.Tensor,
    peak: torch.Tensor,
    picked: npt.NDArray[np.int64],
    rows: SampleRows,
    keys: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int64]:
    """Rows with filters: noise for candidates only."""
    device = logits.device
    top_k, top_p, min_p = (
        torch.from_numpy(column[picked].astype(kind)).to(device)
        for column, kind in ((rows.top_k, np.int64), (rows.top_p, np.float64), (rows.min_p, np.float64))
    )
    drawn = np.zeros(len(picked), dtype=np.int64)
    for found in find_survivors(_scaled(logits, peak, picked, rows), top_k, top_p, min_p):
        part = found.rows.cpu().numpy()
        if len(part) == 0:
            continue
        scores = found.values + gumbel(keys[picked[part]], found.token_ids.to(torch.int32))
        is_best = scores == scores.max(dim=-1, keepdim=True).values
        lowest = found.token_ids.masked_fill(~is_best, logits.shape[1]).min(dim=-1).values
        drawn[part] = lowest.cpu().numpy()
    return drawn
