"""POST /v1/completions: prompts of text or ids, echo, the completions form of logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp

from xllm.api.call import (
    Edge,
    admission_of,
    answer_whole,
    check_stream_fields,
    new_id,
    sampling_values,
    tenant_of,
    unix_now,
    usage_of,
)
from xllm.api.choice_text import Delta
from xllm.api.chunk_writer import ChunkWriter
from xllm.api.decode import decode_body, read_body
from xllm.api.fields import check_refused
from xllm.api.generation import ChoiceResult, Generation
from xllm.api.logprobs import CompletionLogprobs, LogprobView
from xllm.api.preprocess import truncate_ids
from xllm.api.protocol import CompletionRequest
from xllm.api.sse import EventStream, start_watched
from xllm.api.text_pipeline import TextPipeline
from xllm.errors import InvalidRequest
from xllm.types.output import PositionLogprobs
from xllm.types.request import Request

MAX_PROMPTS = 1024
MAX_CALL_CHOICES = 4096
"""Prompts times n of one call: every choice costs the edge an object before the first token."""

Prompt = str | list[int]


async def completions(edge: Edge, http: HttpRequest) -> ASGIApp:
    """Handle one completion request.

    Raises:
        XllmError: before the first byte of the answer; the caller renders it.
    """
    arrived_s = edge.metrics.clock.now()
    body = decode_body(await read_body(http, edge.max_body_bytes), CompletionRequest)
    model = edge.check_model(body.model)
    check_refused(body)
    check_stream_fields(body)
    call_id = new_id("cmpl", body, http)
    requests = await build_completion_requests(edge, body, call_id, arrived_s, tenant_of(body, http))
    generation = Generation(edge.backend, requests, edge.metrics.begin_call(requests, arrived_s))
    await start_watched(http.receive, generation)
    answer = _Answer(body, call_id, generation, model, edge.backend.text)
    if body.stream:
        return EventStream(generation, CompletionEvents(answer))
    return await answer_whole(http, generation, answer.whole)


def split_prompts(prompt: str | list[str | int | list[int]] | None) -> list[Prompt]:
    """The four forms of ``prompt`` as a list of texts and id lists.

    Raises:
        InvalidRequest: absent, empty or mixed.
    """
    if prompt is None:
        raise InvalidRequest("field 'prompt' is missing", param="prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt is an empty list", hint="send at least one prompt", param="prompt")
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if len(kinds) > 1:
        raise InvalidRequest("prompt mixes texts and token ids", hint="send one kind", param="prompt")
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt has {len(prompt)} prompts", hint=f"send at most {MAX_PROMPTS}", param="prompt"
        )
    return cast("list[Prompt]", prompt)


async def build_completion_requests(
    edge: Edge, body: CompletionRequest, call_id: str, arrived_s: float, tenant: str
) -> tuple[Request, ...]:
    """One engine request per prompt."""
    prompts = split_prompts(body.prompt)
    values = sampling_values(body) | {"logprobs": body.logprobs}
    if body.max_tokens == 0 and body.echo:
        values["max_tokens"] = 1  # scoring only: one token is made and not shown
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        values["prompt_logprobs"] = body.logprobs
    if body.echo and body.stream and body.logprobs is not None:
        raise InvalidRequest("echo with logprobs cannot be streamed", hint="leave stream out", param="echo")
    sampling = edge.preprocessor.default_sampling(values)
    if len(prompts) * sampling.n > MAX_CALL_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n={sampling.n} make {len(prompts) * sampling.n} choices",
            hint=f"ask for at most {MAX_CALL_CHOICES} per call",
            param="n",
        )
    adds_special = True if body.add_special_tokens is None else body.add_special_tokens
    room = edge.backend.model.max_model_len - (sampling.max_tokens or 1)
    requests = []
    for index, prompt in enumerate(prompts):
        ids: Sequence[int] = (
            await edge.encode_text(prompt, add_special_tokens=adds_special)
            if isinstance(prompt, str)
            else prompt
        )
        ids = truncate_ids(ids, body.truncate_prompt_tokens, body.truncation_side, room)
        request_id = call_id if len(prompts) == 1 else f"{call_id}-{index}"
        age_s = edge.metrics.clock.now() - arrived_s
        requests.append(
            edge.preprocessor.build_request(
                request_id, ids, sampling, admission_of(body, tenant), age_s=age_s
            )
        )
    return tuple(requests)


class _Answer:
    """Facts of one answer, shared by the whole and the streamed form."""

    def __init__(
        self, body: CompletionRequest, call_id: str, generation: Generation, model: str, text: TextPipeline
    ) -> None:
        self.body = body
        self.call_id = call_id
        self.generation = generation
        self.model = model
        self.created = unix_now()
        self.tokenizer = text.tokenizer
        self.view = LogprobView(text.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self.shows_output = not (body.echo and body.max_tokens == 0)
        num_top = body.logprobs or 0
        self.logprobs = [CompletionLogprobs(self.view, num_top) for _ in generation.choices]

    def request_of(self, choice: int) -> Request:
        """The request a choice belongs to."""
        requests = self.generation.requests
        return requests[choice // requests[0].sampling.n]

    def echo_of(self, choice: int) -> str:
        """The prompt's text where it is to be echoed."""
        if not self.body.echo:
            return ""
        request = self.request_of(choice)
        return self.tokenizer.decode(request.prompt_token_ids, request.sampling.skip_special_tokens)

    async def whole(self) -> dict[str, Any]:
        """Collect and render the answer of a call without stream."""
        results = await self.generation.collect()
        usage = usage_of(self.generation)
        if not self.shows_output:
            usage["completion_tokens"] = 0
            usage["total_tokens"] = usage["prompt_tokens"]
        return {
            "id": self.call_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(result) for result in results],
            "usage": usage,
        }

    def _choice(self, result: ChoiceResult) -> dict[str, Any]:
        shown = result.text if self.shows_output else ""
        choice: dict[str, Any] = {
            "index": result.index,
            "text": self.echo_of(result.index) + shown,
            "logprobs": self._logprobs(result) if self.body.logprobs is not None else None,
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_reason,
        }
        request = self.request_of(result.index)
        if self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self.view.prompt(self._prompt_logprobs(result.index))
        if self.body.return_token_ids:
            choice["prompt_token_ids"] = request.prompt_token_ids
            choice["token_ids"] = result.token_ids
        return choice

    def _prompt_logprobs(self, choice: int) -> Sequence[PositionLogprobs | None]:
        position = choice // self.generation.requests[0].sampling.n
        return self.generation.facts[position].prompt_logprobs or ()

    def _logprobs(self, result: ChoiceResult) -> dict[str, Any]:
        ids: list[int] = []
        positions: list[PositionLogprobs | None] = []
        if self.body.echo:
            ids += self.request_of(result.index).prompt_token_ids
            positions += self._prompt_logprobs(result.index)
        if self.shows_output:
            ids += result.token_ids
            positions += result.logprobs
        return self.logprobs[result.index].render(ids, positions)


class CompletionEvents:
    """An :class:`~xllm.api.sse.EventEncoder` for text completions."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        body = answer.body
        head = {
            "id": answer.call_id,
            "object": "text_completion",
            "created": answer.created,
            "model": answer.model,
        }
        self._writer = ChunkWriter(
            answer.generation,
            head,
            (b'"text":', b""),
            body.stream_options,
            shows_text_alone=body.logprobs is None and not body.return_token_ids and answer.shows_output,
        )

    def opening(self) -> bytes:
        """The prompts where they are to be echoed."""
        answer = self._answer
        if not answer.body.echo:
            return b""
        choices = [choice.index for choice in answer.generation.choices]
        return b"".join(part for i in choices for part in self._writer.text(i, 0, answer.echo_of(i)))

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """One event per choice with news."""
        return self._writer.events(deltas, self._choice)

    def closing(self) -> bytes:
        """The usage event where asked for, and the end mark."""
        return self._writer.closing()

    def _choice(self, delta: Delta) -> dict[str, Any]:
        answer = self._answer
        shown = answer.shows_output
        choice: dict[str, Any] = {
            "index": delta.index,
            "text": delta.text if shown else "",
            "logprobs": (
                answer.logprobs[delta.index].render(delta.token_ids, delta.logprobs)
                if answer.body.logprobs is not None and shown
                else None
            ),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if answer.body.return_token_ids:
            choice["token_ids"] = delta.token_ids
            choice["prompt_token_ids"] = answer.request_of(delta.index).prompt_token_ids
        return choice
