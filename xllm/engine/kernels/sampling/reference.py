"""``sample_gumbel``: temperature, filters, then argmax of log-probability plus Gumbel noise.

Masks, logit bias and penalties have been applied to the logits before. The argmax of ``log p(v) + g(v)``
over the surviving ids is a draw from their renormalised distribution (Gumbel-max; Maddison, Tarlow, Minka
2014); the normaliser is the same for all ids of a row and is left out.
"""

from __future__ import annotations

import torch

from xllm.engine.kernels.sampling.filters import find_survivors
from xllm.engine.kernels.sampling.noise import gumbel, row_keys

MIN_TEMPERATURE = 1e-10
"""Smaller positive temperatures count as this one; dividing by them would leave the range of float32."""
NOISE_CHUNK = 1 << 18
"""Elements of noise computed at once on the host: small enough to stay in the cache."""


def pick_largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every row the largest logit and where it stands first; NaN, and where, in a row that has one.

    Args:
        logits: float32 ``[N, V]``.

    Returns:
        float32 ``[N]`` and int64 ``[N]``.
    """
    best, ids = logits.max(dim=-1)
    return best, ids


@torch.inference_mode()
def sample_gumbel(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    choices: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Draw one token per row; a row's result depends on its own logits and parameters only.

    Args:
        logits: float32 ``[N, V]``; left as it is. A row with NaN, +inf or only -inf gives some id of the
            vocabulary. temperature: float32 ``[N]``, above 0. top_k: int64 ``[N]``, 0 = all. top_p: float32
            ``[N]``, 1 = all. min_p: float32 ``[N]``, 0 = all. seeds: int64 ``[N]``, 64 bits in two's
            complement. choices: int64 ``[N]``. positions: int64 ``[N]``, of the sampled token in its
            sequence.

    Returns:
        int64 ``[N]``.
    """
    vocab_size = logits.shape[1]
    peak = logits.amax(dim=-1)
    temperature = temperature.clamp(min=MIN_TEMPERATURE)
    keys = row_keys(seeds, choices, positions)
    is_filtered = ((top_k > 0) & (top_k < vocab_size)) | (top_p < 1) | (min_p > 0)
    drawn = torch.zeros_like(keys)
    is_filtered_on_host = is_filtered.cpu()
    if not is_filtered_on_host.all():
        index = torch.nonzero(~is_filtered)[:, 0]
        drawn[index] = _draw_open(logits, peak, temperature, keys, index)
    if is_filtered_on_host.any():
        index = torch.nonzero(is_filtered)[:, 0]
        scaled = _scaled(logits, peak, temperature, index)
        for found in find_survivors(scaled, top_k[index], top_p[index].double(), min_p[index].double()):
            rows = index[found.rows]
            scores = found.values + gumbel(keys[rows], found.token_ids.to(torch.int32))
            is_best = scores == scores.amax(dim=-1, keepdim=True)
            lowest = found.token_ids.masked_fill(~is_best, vocab_size - 1).amin(dim=-1)
            drawn[rows] = lowest
    return drawn


def _scaled(
    logits: torch.Tensor, peak: torch.Tensor, temperature: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """Logits of some rows after temperature, shifted so that the largest is 0: no temperature overflows."""
    part = logits.index_select(0, index)
    return part.sub_(peak[index][:, None]).div_(temperature[index][:, None])


def _draw_open(
    logits: torch.Tensor,
    peak: torch.Tensor,
    temperature: torch.Tensor,
    keys: torch.Tensor,
    index: torch.Tensor,
) -> torch.Tensor:
    """Rows without filters: noise for every id."""
    vocab_size = logits.shape[1]
    ids = torch.arange(vocab_size, dtype=torch.int32, device=logits.device)
    size = len(index) if logits.is_cuda else max(NOISE_CHUNK // vocab_size, 1)
    drawn = [
        _scaled(logits, peak, temperature, part).add_(gumbel(keys[part], ids)).argmax(dim=-1)
        for part in index.split(size)
    ]
    return torch.cat(drawn)
