"""What a request must satisfy before it is queued. Refusals are typed errors; nothing accepted is ignored."""

from __future__ import annotations

import math

from xllm.errors import ContextTooLong, InvalidRequest, Unsupported
from xllm.types.request import Program, Request


def check_request(request: Request, *, vocab_size: int, max_model_len: int) -> None:
    """Raise InvalidRequest, ContextTooLong or Unsupported."""
    _check_built(request)
    prompt, sampling = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", hint="send at least one token", param="prompt")
    if len(prompt) >= max_model_len:
        raise ContextTooLong(
            f"the prompt has {len(prompt)} tokens; the context holds {max_model_len}, one of them for the answer",
            hint=f"send at most {max_model_len - 1} prompt tokens",
            param="prompt",
        )
    _check_ids("prompt", prompt, vocab_size)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    _check_ids("logit_bias", tuple(sampling.logit_bias), vocab_size)
    for words in sampling.bad_words_token_ids:
        _check_ids("bad_words", words, vocab_size)
    if sampling.min_tokens > max_model_len - len(prompt):
        raise ContextTooLong(
            f"min_tokens {sampling.min_tokens} and {len(prompt)} prompt tokens exceed the context of {max_model_len}",
            hint=f"use min_tokens <= {max_model_len - len(prompt)}",
            param="min_tokens",
        )
    for name in ("ttft_ms", "tpot_ms", "ttlt_ms"):
        budget_ms = getattr(request.slo, name)
        if budget_ms is not None and not 0 < budget_ms < math.inf:
            raise InvalidRequest(
                f"the latency budget {name} is {budget_ms}",
                hint="a number of milliseconds above 0",
                param=name,
            )
    _check_resumed(request, vocab_size, max_model_len)


def _check_built(request: Request) -> None:
    built = (
        ("media", not request.media and not request.media_spans),
        ("adapter", request.adapter is None),
        ("program", request.program == Program()),
        ("session", request.session is None),
    )
    for field, is_built in built:
        if not is_built:
            raise Unsupported(
                f"{field} is not built yet", hint=f"send the request without {field}", param=field
            )


def _check_resumed(request: Request, vocab_size: int, max_model_len: int) -> None:
    resumed, sampling = request.resumed_output_ids, request.sampling
    if resumed and len(resumed) != sampling.n:
        raise InvalidRequest(
            f"resumed_output_ids has {len(resumed)} choices, n is {sampling.n}", hint="one tuple per choice"
        )
    if not request.open_choices or not set(request.ended_choices) <= set(range(sampling.n)):
        raise InvalidRequest(
            f"ended_choices is {request.ended_choices}, n is {sampling.n}",
            hint="name some of the choices 0..n-1, not all",
        )
    limit = max_output_tokens(request, max_model_len)
    for choice, ids in enumerate(resumed):
        if choice in request.ended_choices:
            continue
        _check_ids("resumed_output_ids", ids, vocab_size)
        if len(ids) >= limit:
            raise InvalidRequest(
                f"a resumed choice already has {len(ids)} of {limit} tokens", hint="it is finished"
            )


def _check_ids(field: str, ids: tuple[int, ...], vocab_size: int) -> None:
    if ids and (max(ids) >= vocab_size or min(ids) < 0):
        bad = next(t for t in ids if not 0 <= t < vocab_size)
        raise InvalidRequest(
            f"{field} has token id {bad}; the vocabulary has {vocab_size} ids",
            hint=f"use ids 0..{vocab_size - 1}",
            param=field,
        )


def max_output_tokens(request: Request, max_model_len: int) -> int:
    """Output tokens the choice may have: ``max_tokens``, or what the context leaves."""
    room = max_model_len - len(request.prompt_token_ids)
    wanted = request.sampling.max_tokens
    return room if wanted is None else min(wanted, room)
