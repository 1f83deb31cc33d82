"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp

from xllm.api.call import Edge
from xllm.api.chat import template_messages
from xllm.api.decode import decode_body, read_body
from xllm.api.protocol import DetokenizeRequest, TokenizeRequest
from xllm.errors import InvalidRequest

_MANY_IDS = 16_384
"""From here on decoding takes so long that streams would notice."""


async def tokenize(edge: Edge, http: HttpRequest) -> ASGIApp:
    """Ids of a prompt, or of a conversation as the chat template writes it.

    Raises:
        InvalidRequest: neither or both of prompt and messages.
    """
    body = decode_body(await read_body(http, edge.max_body_bytes), TokenizeRequest)
    edge.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", hint="exactly one of them", param="prompt")
    text, adds_special = _text_of(edge, body)
    ids = await edge.encode_text(text, add_special_tokens=adds_special)
    tokenizer = edge.backend.text.tokenizer
    answer: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": edge.backend.model.max_model_len,
        "tokens": ids,
        "token_strs": [tokenizer.token_piece(i) for i in ids] if body.return_token_strs else None,
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _text_of(edge: Edge, body: TokenizeRequest) -> tuple[str, bool]:
    if body.prompt is not None:
        for name in ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if getattr(body, name) is not None:
                raise InvalidRequest(f"{name} belongs to messages, not to prompt", param=name)
        return body.prompt, body.add_special_tokens is not False
    assert body.messages is not None
    text = edge.backend.text
    continues = bool(body.continue_final_message)
    opens = body.add_generation_prompt if body.add_generation_prompt is not None else not continues
    rendered = text.render_chat(
        template_messages(body.messages, text),
        tools=[msgspec.to_builtins(tool) for tool in body.tools] if body.tools else None,
        add_generation_prompt=opens,
        continue_final_message=continues,
        template_kwargs=body.chat_template_kwargs,
    )
    return rendered, bool(body.add_special_tokens)


async def detokenize(edge: Edge, http: HttpRequest) -> ASGIApp:
    """Text of token ids, special ones included unless told otherwise."""
    body = decode_body(await read_body(http, edge.max_body_bytes), DetokenizeRequest)
    edge.check_model(body.model)
    ids, size = body.tokens, edge.backend.model.vocab_size
    if ids and (min(ids) < 0 or max(ids) >= size):
        wrong = next(i for i in ids if not 0 <= i < size)
        raise InvalidRequest(
            f"token id {wrong} is not in the vocabulary", hint=f"use 0..{size - 1}", param="tokens"
        )
    decode = edge.backend.text.tokenizer.decode
    skips_special = bool(body.skip_special_tokens)
    text = (
        decode(ids, skips_special)
        if len(ids) < _MANY_IDS
        else await asyncio.to_thread(decode, ids, skips_special)
    )
    return Response(msgspec.json.encode({"prompt": text}), media_type="application/json")
