"""StepMask rows for ``allowed_token_ids``, ``bad_words`` and ``min_tokens``.

A mask depends on the tokens before the sampled one, so it is made when those are known: the late input of a step.
Grammars will clear bits in the very same rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xllm.engine.scheduler.sequence import Sequence
from xllm.types.request import Request

Bits = NDArray[np.uint8]


def num_mask_bytes(vocab_size: int) -> int:
    """Bytes of one packed row: whole 32-bit words."""
    return (vocab_size + 31) // 32 * 4


class TokenMask:
    """The rules of one request over a vocabulary; shared by its choices, keeps no state of its own."""

    __slots__ = ("_bad_endings", "_base", "_is_restricted", "_min_tokens", "_stops")

    def __init__(self, request: Request, vocab_size: int) -> None:
        sampling = request.sampling
        self._base = _base_bits(sampling.allowed_token_ids, vocab_size)
        self._bad_endings = [words for words in sampling.bad_words_token_ids if len(words) > 1]
        for words in sampling.bad_words_token_ids:
            if len(words) == 1:
                _clear(self._base, words[0])
        stops = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stops.update(request.eos_token_ids)
        self._stops = tuple(t for t in stops if t < vocab_size)
        self._min_tokens = sampling.min_tokens
        self._is_restricted = bool(sampling.allowed_token_ids or sampling.bad_words_token_ids)

    def is_active(self, num_output: int) -> bool:
        """Whether the token after ``num_output`` outputs is masked at all."""
        return self._is_restricted or (num_output < self._min_tokens and bool(self._stops))

    def row(self, seq: Sequence) -> Bits:
        """Allowed bits for the sequence's next token."""
        bits = self._base.copy()
        if seq.num_output < self._min_tokens:
            for token in self._stops:
                _clear(bits, token)
        for words in self._bad_endings:
            head = len(words) - 1
            if seq.num_output >= head and tuple(seq.token_ids[-head:]) == words[:-1]:
                _clear(bits, words[-1])
        return bits


def try_token_mask(request: Request, vocab_size: int) -> TokenMask | None:
    """A mask, or None when the request restricts nothing."""
    sampling = request.sampling
    if sampling.allowed_token_ids or sampling.bad_words_token_ids or sampling.min_tokens:
        return TokenMask(request, vocab_size)
    return None


def _base_bits(allowed: tuple[int, ...], vocab_size: int) -> Bits:
    flags = np.zeros(num_mask_bytes(vocab_size) * 8, dtype=np.uint8)
    if allowed:
        flags[list(allowed)] = 1
    else:
        flags[:vocab_size] = 1
    return np.packbits(flags, bitorder="little")


def _clear(bits: Bits, token: int) -> None:
    bits[token >> 3] &= np.uint8(0xFF & ~(1 << (token & 7)))
