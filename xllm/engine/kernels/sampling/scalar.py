"""One row in plain Python: the definition, without torch and without tricks.

Logarithms are double precision here, so scores agree with the vectorised ones to about 1e-6.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

_MASK_32 = 2**32 - 1
_MASK_64 = 2**64 - 1


def row_key(seed: int, choice: int, position: int) -> int:
    """The 64-bit key of a row."""
    key = 0
    for word in (seed, choice, position):
        key = _mix(key ^ (word & _MASK_64))
    return key


def uniform(key: int, token_id: int) -> float:
    """W of the recipe, a float32 value in (0, 1)."""
    h = _fmix(((token_id * 0x9E3779B1) & _MASK_32) + (key & _MASK_32))
    h = _fmix(h + (key >> 32))
    return min(_round32(_round32(float(h >> 1)) + 0.5) * 2.0**-31, 1 - 2.0**-24)


def gumbel(key: int, token_id: int) -> float:
    """The noise of one token id."""
    return -math.log(-math.log1p(-uniform(key, token_id)))


def survivors(
    logits: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> dict[int, float]:
    """Ids that survive temperature, min-p, top-k and top-p, with their scaled logits (best = 0)."""
    best = max(logits)
    scaled = {v: (x - best) / temperature for v, x in enumerate(logits) if x > -math.inf}
    if min_p > 0:
        scaled = {v: x for v, x in scaled.items() if x >= math.log(min_p)}
    if 0 < top_k < len(scaled):
        kth = sorted(scaled.values(), reverse=True)[top_k - 1]
        scaled = {v: x for v, x in scaled.items() if x >= kth}
    if top_p < 1:
        total = sum(math.exp(x) for x in scaled.values())
        scaled = {
            v: x
            for v, x in scaled.items()
            if sum(math.exp(y) for y in scaled.values() if y > x) < top_p * total
        }
    return scaled


def sample_one(
    logits: Sequence[float],
    *,
    seed: int,
    choice: int = 0,
    position: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> int:
    """Draw one token; temperature 0 takes the largest logit, on a tie the lowest id."""
    if temperature == 0:
        return max(range(len(logits)), key=lambda v: (logits[v], -v))
    key = row_key(seed, choice, position)
    alive = survivors(logits, temperature, top_k, top_p, min_p)
    return max(alive, key=lambda v: (alive[v] + gumbel(key, v), -v))


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return x ^ (x >> 31)


def _fmix(x: int) -> int:
    x &= _MASK_32
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK_32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK_32
    return x ^ (x >> 16)


def _round32(x: float) -> float:
    """To the nearest float32."""
    value: float = struct.unpack("<f", struct.pack("<f", x))[0]
    return value
