"""Gumbel noise g(seed, choice, position, token id) from a counter-based hash.

The recipe, to be reproduced bit by bit by every other implementation. All arithmetic is unsigned and wraps.

1. Row key, 64 bit, with ``mix`` = the output function of SplitMix64 (Steele, Lea, Flood 2014)::

       mix(x): x += 0x9E3779B97F4A7C15
               x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
               x = (x ^ (x >> 27)) * 0x94D049BB133111EB
               return x ^ (x >> 31)

       key = mix(mix(mix(seed) ^ choice) ^ position)      k0 = low 32 bits of key, k1 = high 32 bits

2. Hash per token id v, 32 bit, with ``fmix`` = the finaliser of MurmurHash3 (Appleby)::

       fmix(x): x ^= x >> 16; x *= 0x85EBCA6B; x ^= x >> 13; x *= 0xC2B2AE35; x ^= x >> 16

       h = fmix(fmix(v * 0x9E3779B1 + k0) + k1)

3. Uniform in (0, 1), float32, each operation rounded to nearest even::

       w = min((float(h >> 1) + 0.5) * 2^-31, 1 - 2^-24)

4. ``g = -log(-log1p(-w))`` in float32. Fine resolution lies at small w, where g is large and decides:
tokens down to a
   probability of about 2^-32 are drawn at their rate. Logarithms of different libraries differ in the last
   bit, so devices agree up to the bits of ``w``; on one device the result depends on nothing else.
"""

from __future__ import annotations

import torch

_ID_FACTOR = 0x9E3779B1
_FMIX_1 = 0x85EBCA6B
_FMIX_2 = 0xC2B2AE35
_MAX_UNIFORM = 1 - 2.0**-24


def row_keys(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Keys of rows, int64 ``[N]`` holding the unsigned bits; a negative seed is its two's complement."""
    return _mix(_mix(_mix(seeds) ^ choices) ^ positions)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x + _signed(0x9E3779B97F4A7C15, 64)
    x = (x ^ _shift(x, 30, 64)) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ _shift(x, 27, 64)) * _signed(0x94D049BB133111EB, 64)
    return x ^ _shift(x, 31, 64)


def gumbel(keys: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Noise of rows and tokens.

    Args:
        keys: int64 ``[R]``.
        token_ids: int32 ``[V]`` (the same for all rows) or ``[R, V]``.

    Returns:
        float32 ``[R, V]`` on the device of ``token_ids``.
    """
    # A cast to int32 keeps the low 32 bits.
    low, high = keys.to(torch.int32)[:, None], _shift(keys, 32, 64).to(torch.int32)[:, None]
    x = token_ids * _signed(_ID_FACTOR) + low
    _fmix(x)
    x += high
    _fmix(x)
    w = _shift(x, 1).to(torch.float32)
    w.add_(0.5).mul_(2.0**-31).clamp_(max=_MAX_UNIFORM)
    return w.neg_().log1p_().neg_().log_().neg_()


def _fmix(x: torch.Tensor) -> None:
    """In place; int32 holds the unsigned bits."""
    x ^= _shift(x, 16)
    x *= _signed(_FMIX_1)
    x ^= _shift(x, 13)
    x *= _signed(_FMIX_2)
    x ^= _shift(x, 16)


def _shift(x: torch.Tensor, bits: int, width: int = 32) -> torch.Tensor:
    """Logical right shift of signed integers; torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (width - bits)) - 1)


def _signed(value: int, width: int = 32) -> int:
    return value - (1 << width) if value >= 1 << (width - 1) else value
