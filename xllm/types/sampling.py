"""SamplingParams: how tokens of one request are chosen and when it ends."""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from xllm.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024


class SamplingParams(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every sampling parameter vLLM takes, with its defaults; raises :class:`InvalidRequest` on impossible values.

    ``stop`` and ``bad_words`` are text: the edge applies the first while detokenising and translates the second into
    ``bad_words_token_ids``; the engine reads token ids only.
    """

    n: int = 1
    """Choices per prompt; each has its own noise stream."""
    temperature: float = 1.0
    """0 = greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 = all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    """Token id to bias in -100..100, added to the logits before penalties."""
    seed: int | None = None
    """None = the edge draws one, so that every request can be resumed and explained."""
    max_tokens: int | None = None
    """Output tokens; None = up to the model's context."""
    min_tokens: int = 0
    """End-of-sequence and stop ids are masked until this many tokens exist."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: tuple[str, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Empty = every token."""
    logprobs: int | None = None
    """Log-probabilities of the n best tokens per position (raw logits); 0 = of the sampled token only."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        _check(1 <= self.n <= MAX_CHOICES, "n", self.n, f"1..{MAX_CHOICES}")
        _check(
            _finite(self.temperature) and 0 <= self.temperature <= 100,
            "temperature",
            self.temperature,
            "0..2",
        )
        _check(_finite(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        _check(-1 <= self.top_k < 2**31, "top_k", self.top_k, "-1 or 0 (all), or a positive count")
        _check(_finite(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "0..1")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(_finite(value) and -2 <= value <= 2, name, value, "-2..2")
        _check(
            _finite(self.repetition_penalty) and 0 < self.repetition_penalty <= 100,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0; 1 switches it off",
        )
        _check(
            len(self.logit_bias) <= MAX_LOGIT_BIAS,
            "logit_bias",
            len(self.logit_bias),
            f"<= {MAX_LOGIT_BIAS} ids",
        )
        for token, bias in self.logit_bias.items():
            ok = token >= 0 and _finite(bias) and -100 <= bias <= 100
            _check(ok, "logit_bias", {token: bias}, "a token id >= 0 with a bias in -100..100")
        if self.seed is not None:
            _check(-(2**63) <= self.seed <= MAX_SEED, "seed", self.seed, "a 64-bit integer")
        if self.max_tokens is not None:
            _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(self.min_tokens >= 0, "min_tokens", self.min_tokens, "0 or more")
        if self.max_tokens is not None:
            _check(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                self.min_tokens,
                f"<= max_tokens {self.max_tokens}",
            )
        _check(all(self.stop), "stop", self.stop, "strings that are not empty")
        _check(len(self.stop) <= 64, "stop", len(self.stop), "at most 64 strings")
        _check(all(self.bad_words), "bad_words", self.bad_words, "words that are not empty")
        _check(all(t >= 0 for t in self.stop_token_ids), "stop_token_ids", self.stop_token_ids, "ids >= 0")
        _check(
            all(t >= 0 for t in self.allowed_token_ids),
            "allowed_token_ids",
            self.allowed_token_ids,
            "ids >= 0",
        )
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= MAX_LOGPROBS, name, value, f"0..{MAX_LOGPROBS}")

    @property
    def is_greedy(self) -> bool:
        """Temperature 0: the token with the largest logit, lowest id on a tie."""
        return self.temperature == 0.0

    @property
    def needs_penalties(self) -> bool:
        """Whether any penalty changes the logits."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _check(ok: bool, field: str, value: Any, wanted: str) -> None:
    if not ok:
        raise InvalidRequest(f"{field} is {value!r}", hint=f"use {wanted}", param=field)
