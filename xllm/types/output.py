"""RequestOutput: what an engine says about one choice of one request after a step."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from xllm.types.ids import RequestId, StepId

FinishReason = Literal["stop", "length", "abort", "error", "deadline"]


class TokenLogprob(Struct, frozen=True, array_like=True):
    """One token with its log-probability and its rank (1 = most likely) under the raw logits."""

    token_id: int
    logprob: float
    rank: int


class PositionLogprobs(Struct, frozen=True, array_like=True):
    """The sampled (or prompt) token of one position, and the best tokens there, most likely first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


class OutputError(Struct, frozen=True, array_like=True):
    """Why a request ended badly: type name of :mod:`xllm.errors`, HTTP status, message."""

    type_name: str
    status: int
    message: str
    retryable: bool = False


class Usage(Struct, frozen=True, array_like=True):
    """Token counts of one choice, sent with its terminal output."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens whose KV was already there at the first admission."""
    num_preemptions: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class RequestOutput(Struct, frozen=True, array_like=True):
    """New tokens of one choice. ``finish_reason`` is set exactly once per choice: that output is terminal.

    Stop and special ids are included; the edge decides what text is shown. Streams of several attempts or instances
    are merged by (attempt, choice, first_token_index).
    """

    request_id: RequestId
    attempt: int
    choice: int
    first_token_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    """The stop token id that ended the choice (None for end-of-sequence)."""
    usage: Usage | None = None
    error: OutputError | None = None
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    """Once per request, with choice 0's first output; entry 0 is None (nothing precedes it)."""
    num_cached_tokens: int | None = None
    """With a choice's first output."""
    mean_logprob: float | None = None
    """Reserved: output statistics for cascades."""


class OutputFrame(Struct, frozen=True, array_like=True):
    """All outputs of one engine step: one frame on the wire."""

    step: StepId
    outputs: tuple[RequestOutput, ...]
