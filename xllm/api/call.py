"""What handlers of both completion endpoints share: the edge's context, ids, sampling fields, usage."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp

from xllm.api.backend import Backend
from xllm.api.generation import ClientGone, Generation
from xllm.api.observe import EdgeMetrics
from xllm.api.preprocess import Admission, Preprocessor, check_client_id
from xllm.api.protocol import SamplingFields
from xllm.api.sse import watch_client
from xllm.errors import CapacityError, InvalidRequest, NotFound
from xllm.types.request import SloBudgets
from xllm.types.tenant import user_tenant

_LONG_TEXT_CHARS = 16_384
CLIENT_CLOSED = 499
_NO_ENGINE_RETRY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """Everything a handler may use."""

    backend: Backend
    preprocessor: Preprocessor
    metrics: EdgeMetrics
    max_body_bytes: int
    metrics_compat: str = "none"

    def check_model(self, name: str | None) -> str:
        """The name to answer with.

        Raises:
            NotFound: no such model is served.
            CapacityError: 503, no engine of it has joined yet.
        """
        model = self.backend.model
        names = model.names
        if name and name not in names:
            raise NotFound(
                f"model {name[:200]!r} is not served", hint=f"served: {', '.join(names)}", param="model"
            )
        if not model.is_known:
            raise CapacityError(
                f"no engine of {names[0]!r} has joined yet",
                status=503,
                retry_after_s=_NO_ENGINE_RETRY_S,
                hint=f"start one: xllm engine {names[0]} --registry URL",
            )
        self.preprocessor.follow(model)
        return name or names[0]

    async def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Tokenise; a long text in a thread, so that no stream waits for it."""
        if len(text) < _LONG_TEXT_CHARS:
            return self.preprocessor.encode_text(text, add_special_tokens=add_special_tokens)
        self.preprocessor.check_text(text)
        return await asyncio.to_thread(
            self.preprocessor.encode_text, text, add_special_tokens=add_special_tokens
        )


Handler = Callable[[HttpRequest], Awaitable[ASGIApp]]


def new_id(prefix: str, body: SamplingFields, http: HttpRequest) -> str:
    """``prefix-`` and the client's own id (field, then X-Request-Id), or a random one."""
    own = check_client_id(body.request_id)
    if own is None:
        header = http.headers.get("x-request-id")
        own = header if header and len(header) <= 128 and header.isascii() and header.isalnum() else None
    return f"{prefix}-{own or secrets.token_hex(16)}"


def sampling_values(body: SamplingFields) -> dict[str, Any]:
    """The fields that both endpoints share, as SamplingParams names them; None = not given."""
    return {
        "n": body.n,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": _logit_bias(body.logit_bias),
        "seed": body.seed,
        "max_tokens": body.max_tokens,
        "min_tokens": body.min_tokens,
        "stop": (body.stop,) if isinstance(body.stop, str) else _as_tuple(body.stop),
        "stop_token_ids": _as_tuple(body.stop_token_ids),
        "include_stop_str_in_output": body.include_stop_str_in_output,
        "ignore_eos": body.ignore_eos,
        "bad_words": _as_tuple(body.bad_words),
        "allowed_token_ids": _allowed(body.allowed_token_ids),
        "prompt_logprobs": body.prompt_logprobs,
        "skip_special_tokens": body.skip_special_tokens,
    }


def tenant_of(body: SamplingFields, http: HttpRequest) -> str:
    """Whom the request belongs to: the API key where keys tell tenants apart, else the ``user`` label."""
    tenant: str = http.scope.get("tenant", "")
    return tenant or (user_tenant(body.user) if body.user else "")


def admission_of(body: SamplingFields, tenant: str) -> Admission:
    """Everything about a body that is neither prompt nor sampling."""
    return Admission(
        priority=body.priority or 0,
        offline=bool(body.offline),
        cache_salt=body.cache_salt or "",
        deadline_in_s=body.timeout_s,
        slo=SloBudgets(ttft_ms=body.ttft_slo_ms, tpot_ms=body.tpot_slo_ms, ttlt_ms=body.ttlt_slo_ms),
        tenant=tenant,
        session_id=body.session_id,
    )


def check_stream_fields(body: SamplingFields) -> None:
    """Combinations of stream fields that cannot be meant."""
    if body.stream_options is not None:
        if not body.stream:
            raise InvalidRequest("stream_options without stream", hint="set stream", param="stream_options")
        if body.stream_options.include_obfuscation:
            raise InvalidRequest(
                "stream_options.include_obfuscation is true: not built", param="stream_options"
            )
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest(
            "prompt_logprobs cannot be streamed",
            hint="leave stream or prompt_logprobs out",
            param="prompt_logprobs",
        )


def usage_of(generation: Generation) -> dict[str, Any]:
    """OpenAI's usage object, as of now."""
    prompt, output = generation.num_prompt_tokens, generation.num_output_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }


async def answer_whole(
    http: HttpRequest, generation: Generation, render: Callable[[], Awaitable[Any]]
) -> Response:
    """Run ``render`` (which collects) while watching the client; its result as JSON."""
    try:
        async with watch_client(http.receive, generation):
            body = await render()
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    return Response(msgspec.json.encode(body), media_type="application/json")


def unix_now() -> int:
    """``created``: the only wall-clock value a response has."""
    return int(time.time())


def _as_tuple(values: Any) -> Any:
    return None if values is None else tuple(values)


def _allowed(ids: list[int] | None) -> tuple[int, ...] | None:
    if ids is not None and not ids:
        raise InvalidRequest(
            "allowed_token_ids is empty: nothing could be generated",
            hint="leave it out",
            param="allowed_token_ids",
        )
    return None if ids is None else tuple(ids)


def _logit_bias(given: dict[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    try:
        return {int(key): value for key, value in given.items()}
    except ValueError as exc:
        raise InvalidRequest(
            "logit_bias has a key that is no token id",
            hint='use token ids, e.g. {"50256": -100}',
            param="logit_bias",
        ) from exc
