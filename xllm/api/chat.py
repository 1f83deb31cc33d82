"""POST /v1/chat/completions: body -> prompt -> Generation -> whole answer or stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
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
from xllm.api.logprobs import LogprobView
from xllm.api.preprocess import truncate_ids
from xllm.api.protocol import ChatRequest, Message, Tool
from xllm.api.sse import EventStream, start_watched
from xllm.api.text_pipeline import TextPipeline
from xllm.errors import InvalidRequest, Unsupported
from xllm.types.request import Request

_PART_KEYS = frozenset({"type", "text", "refusal", "cache_control"})


async def chat_completions(edge: Edge, http: HttpRequest) -> ASGIApp:
    """Handle one chat request.

    Raises:
        XllmError: before the first byte of the answer; the caller renders it.
    """
    arrived_s = edge.metrics.clock.now()
    body = decode_body(await read_body(http, edge.max_body_bytes), ChatRequest)
    model = edge.check_model(body.model)
    check_refused(body)
    check_stream_fields(body)
    request = await build_chat_request(
        edge, body, new_id("chatcmpl", body, http), arrived_s, tenant_of(body, http)
    )
    generation = Generation(edge.backend, (request,), edge.metrics.begin_call((request,), arrived_s))
    await start_watched(http.receive, generation)
    answer = _Answer(body, request, generation, model, edge.backend.text)
    if body.stream:
        return EventStream(generation, ChatEvents(answer))
    return await answer_whole(http, generation, answer.whole)


async def build_chat_request(
    edge: Edge, body: ChatRequest, request_id: str, arrived_s: float, tenant: str
) -> Request:
    """The engine's request for a chat body."""
    values = sampling_values(body) | {"logprobs": _num_logprobs(body)}
    if body.max_completion_tokens is not None:
        values["max_tokens"] = body.max_completion_tokens
    sampling = edge.preprocessor.default_sampling(values)
    prompt = render_prompt(edge.backend.text, body)
    ids: Sequence[int] = await edge.encode_text(prompt, add_special_tokens=bool(body.add_special_tokens))
    room = edge.backend.model.max_model_len - (sampling.max_tokens or 1)
    ids = truncate_ids(ids, body.truncate_prompt_tokens, body.truncation_side, room)
    age_s = edge.metrics.clock.now() - arrived_s
    return edge.preprocessor.build_request(request_id, ids, sampling, admission_of(body, tenant), age_s=age_s)


def render_prompt(text: TextPipeline, body: ChatRequest) -> str:
    """Messages, tools and template variables -> prompt text."""
    kwargs = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        if text.template_reads("reasoning_effort"):
            kwargs["reasoning_effort"] = body.reasoning_effort
        elif body.reasoning_effort != "none":
            raise Unsupported(
                "the model's chat template does not read reasoning_effort",
                hint="leave it out",
                param="reasoning_effort",
            )
    if body.documents and not text.template_reads("documents"):
        raise Unsupported(
            "the model's chat template does not print documents",
            hint="put them in a message",
            param="documents",
        )
    reserved = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"} & set(
        kwargs
    )
    if reserved:
        raise InvalidRequest(
            f"chat_template_kwargs may not set {sorted(reserved)[0]!r}: it has a field of its own",
            param="chat_template_kwargs",
        )
    continues = bool(body.continue_final_message)
    opens = body.add_generation_prompt if body.add_generation_prompt is not None else not continues
    return text.render_chat(
        template_messages(body.messages, text),
        tools=_tools(body),
        documents=body.documents,
        add_generation_prompt=opens,
        continue_final_message=continues,
        template_kwargs=kwargs,
    )


def template_messages(messages: Sequence[Message], text: TextPipeline) -> list[dict[str, Any]]:
    """Messages as templates read them: plain dicts, only what was given.

    Raises:
        InvalidRequest: there is no message, or a part is not text.
    """
    if not messages:
        raise InvalidRequest("messages is empty", hint="send at least one message", param="messages")
    knows_developer = text.template_reads("developer")
    return [_plain(message, index, knows_developer) for index, message in enumerate(messages)]


def _plain(message: Message, index: int, knows_developer: bool) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not message.role:
        raise InvalidRequest(
            f"{where}.role is empty", hint="use system, user, assistant or tool", param="messages"
        )
    for name in ("function_call", "audio"):
        if getattr(message, name) is not None:
            raise Unsupported(
                f"{where}.{name} is not supported", hint="use tool_calls and text", param="messages"
            )
    if isinstance(message.content, list):
        for part in message.content:
            _check_part(part, where)
    plain: dict[str, Any] = msgspec.to_builtins(message)
    plain.pop("annotations", None)
    plain.setdefault("content", None)
    for call in plain.get("tool_calls", ()):
        call.setdefault("type", "function")
        call["function"].setdefault("arguments", "{}")
    if message.role == "developer" and not knows_developer:
        plain["role"] = "system"  # OpenAI's newer word for the same thing
    return plain


def _check_part(part: str | Mapping[str, Any], where: str) -> None:
    if isinstance(part, str):
        return
    kind = part.get("type")
    if kind not in ("text", "refusal", "input_text", "output_text"):
        raise Unsupported(
            f"{where}.content has a part of type {str(kind)[:40]!r}; this model takes text only",
            param="messages",
        )
    if unknown := set(part) - _PART_KEYS:
        raise InvalidRequest(
            f"{where}.content has a part with unknown field {min(unknown)[:80]!r}", param="messages"
        )
    if not isinstance(part.get("refusal" if kind == "refusal" else "text"), str):
        raise InvalidRequest(f"{where}.content has a {kind} part without text", param="messages")


def _tools(body: ChatRequest) -> list[dict[str, Any]] | None:
    choice = body.tool_choice
    if choice not in (None, "none", "auto"):
        raise Unsupported(
            f"tool_choice is {msgspec.json.encode(choice).decode()[:80]}: forcing a call needs a grammar, which is not"
            " built yet",
            hint='use "auto" or "none"',
            param="tool_choice",
        )
    if choice == "auto" and not body.tools:
        raise InvalidRequest("tool_choice is auto without tools", hint="send tools", param="tool_choice")
    if choice == "none" or not body.tools:
        return None
    return [_plain_tool(tool) for tool in body.tools]


def _plain_tool(tool: Tool) -> dict[str, Any]:
    return {"type": tool.type, "function": msgspec.to_builtins(tool.function)}


def _num_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest(
            "top_logprobs without logprobs", hint="set logprobs to true", param="top_logprobs"
        )
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= 20:
        raise InvalidRequest(f"top_logprobs is {body.top_logprobs}", hint="use 0..20", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


class _Answer:
    """Facts of one chat answer, shared by the whole and the streamed form."""

    def __init__(
        self, body: ChatRequest, request: Request, generation: Generation, model: str, text: TextPipeline
    ) -> None:
        self.body = body
        self.request = request
        self.generation = generation
        self.model = model
        self.created = unix_now()
        self.view = LogprobView(text.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self.num_top = body.top_logprobs or 0
        last = body.messages[-1]
        self.role = (
            last.role
            if body.add_generation_prompt is False and not body.continue_final_message
            else "assistant"
        )

    async def whole(self) -> dict[str, Any]:
        """Collect and render the answer of a call without stream."""
        results = await self.generation.collect()
        answer: dict[str, Any] = {
            "id": self.request.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(result) for result in results],
            "usage": usage_of(self.generation),
        }
        prompt_logprobs = self.generation.facts[0].prompt_logprobs
        if self.body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = self.view.prompt(prompt_logprobs or ())
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = self.request.prompt_token_ids
        return answer

    def _choice(self, result: ChoiceResult) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": result.index,
            "message": {"role": self.role, "content": result.text, "refusal": None},
            "logprobs": self.view.chat(result.logprobs, self.num_top) if self.body.logprobs else None,
            "finish_reason": result.finish_reason,
            "stop_reason": result.stop_reason,
        }
        if self.body.return_token_ids:
            choice["token_ids"] = result.token_ids
        return choice


class ChatEvents:
    """An :class:`~xllm.api.sse.EventEncoder` for chats."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        body = answer.body
        head = {
            "id": answer.request.id,
            "object": "chat.completion.chunk",
            "created": answer.created,
            "model": answer.model,
        }
        self._writer = ChunkWriter(
            answer.generation,
            head,
            (b'"delta":{"content":', b"}"),
            body.stream_options,
            shows_text_alone=not (body.logprobs or body.return_token_ids),
        )

    def opening(self) -> bytes:
        """The role of every choice."""
        return b"".join([self._role_event(choice.index) for choice in self._answer.generation.choices])

    def events(self, deltas: Sequence[Delta]) -> bytes:
        """One event per choice with news."""
        return self._writer.events(deltas, self._choice)

    def closing(self) -> bytes:
        """The usage event where asked for, and the end mark."""
        return self._writer.closing()

    def _role_event(self, index: int) -> bytes:
        choice = {
            "index": index,
            "delta": {"role": self._answer.role, "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        if not self._answer.body.return_token_ids:
            return self._writer.whole(index, 0, choice)
        return self._writer.whole(index, 0, choice, prompt_token_ids=self._answer.request.prompt_token_ids)

    def _choice(self, delta: Delta) -> dict[str, Any]:
        answer = self._answer
        choice: dict[str, Any] = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text or delta.finish_reason is None else {},
            "logprobs": (
                answer.view.chat(delta.logprobs, answer.num_top)
                if answer.body.logprobs and delta.logprobs
                else None
            ),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if answer.body.return_token_ids:
            choice["token_ids"] = delta.token_ids
        return choice
