"""Births of RequestOutput."""

from __future__ import annotations

from xllm.engine.scheduler.sequence import Sequence
from xllm.errors import XllmError
from xllm.types.output import FinishReason, OutputError, PositionLogprobs, RequestOutput, Usage


def output_error(error: XllmError) -> OutputError:
    """An error as it travels inside an output."""
    return OutputError(type(error).__name__, error.status, error.public_message, error.retryable)


def build_output(
    seq: Sequence,
    now_s: float,
    *,
    logprobs: tuple[PositionLogprobs, ...] | None = None,
    finish_reason: FinishReason | None = None,
    stop_reason: int | None = None,
    error: OutputError | None = None,
) -> RequestOutput:
    """Everything the sequence has not told yet; with ``finish_reason`` it is the terminal output and carries usage."""
    first = seq.num_emitted
    tokens = tuple(seq.token_ids[seq.num_prompt + first :])
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    if not seq.prompt_logprobs_sent and seq.prompt_logprobs:
        prompt_logprobs = (None, *seq.prompt_logprobs)
        seq.prompt_logprobs_sent = True
    seq.num_emitted = first + len(tokens)
    return RequestOutput(
        seq.request.id,
        seq.request.attempt,
        seq.choice,
        first,
        tokens,
        logprobs,
        finish_reason,
        stop_reason,
        _usage(seq, now_s) if finish_reason is not None else None,
        error,
        prompt_logprobs,
        seq.num_cached_tokens if first == 0 else None,
    )


def _usage(seq: Sequence, now_s: float) -> Usage:
    admitted = seq.admitted_s if seq.admitted_s is not None else now_s
    first_token = seq.first_token_s if seq.first_token_s is not None else now_s
    return Usage(
        num_prompt_tokens=seq.num_prompt,
        num_output_tokens=seq.num_output,
        num_cached_tokens=seq.num_cached_tokens or 0,
        num_preemptions=seq.num_preemptions,
        queue_s=admitted - seq.arrival_s,
        prefill_s=first_token - admitted,
        decode_s=now_s - first_token,
    )
