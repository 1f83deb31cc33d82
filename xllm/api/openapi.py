"""/openapi.json, generated from the request structs and the field table."""

from __future__ import annotations

from typing import Any

import msgspec

from xllm import __version__
from xllm.api.backend import ServedModel
from xllm.api.fields import TABLES
from xllm.api.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from xllm.types.sampling import MAX_CHOICES, MAX_LOGPROBS

_BODIES: dict[str, tuple[type[Any], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Continue a text"),
    "/tokenize": (TokenizeRequest, "Token ids of a prompt or a conversation"),
    "/detokenize": (DetokenizeRequest, "Text of token ids"),
}
_GETS = {
    "/v1/models": "Served models",
    "/v1/models/{model}": "One served model",
    "/health": "Whether work advances",
    "/ready": "Whether new requests are taken",
    "/metrics": "Prometheus metrics",
    "/version": "Version",
    "/debug/waits": "Every wait with owner, reason and deadline",
    "/debug/requests/{request_id}": "Scheduling decisions about a request",
}
_REF = "#/components/schemas/"
_RANGES: dict[str, dict[str, Any]] = {
    "n": {"minimum": 1, "maximum": MAX_CHOICES},
    "temperature": {"minimum": 0, "maximum": 100},
    "top_k": {"minimum": -1, "maximum": 2**31 - 1},
    "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "priority": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "timeout_s": {"exclusiveMinimum": 0},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "min_p": {"minimum": 0, "maximum": 1},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "repetition_penalty": {"exclusiveMinimum": 0, "maximum": 100},
    "max_tokens": {"minimum": 1},
    "max_completion_tokens": {"minimum": 1},
    "min_tokens": {"minimum": 0},
    "top_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
    "prompt_logprobs": {"minimum": 0, "maximum": MAX_LOGPROBS},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}


def build_openapi(model: ServedModel) -> dict[str, Any]:
    """The OpenAPI 3.1 document, with the names, ids and lengths that ``model`` takes."""
    kinds = [kind for kind, _ in _BODIES.values()]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF + "{name}")
    components["Error"] = _ERROR
    for path, rows in TABLES.items():
        properties = components[_BODIES[path][0].__name__]["properties"]
        for row in rows:
            schema = properties[row.name]
            if row.verdict == "refused":
                properties[row.name] = {"enum": [None, *row.neutral], "description": f"refused: {row.note}"}
            else:
                schema["description"] = row.note
                _limit(schema, _RANGES.get(row.name, {}))
        _fit_model(properties, model)
    components["CompletionRequest"]["required"] = ["prompt"]
    paths: dict[str, Any] = {}
    for (path, (_, summary)), schema in zip(_BODIES.items(), schemas, strict=True):
        content = {"application/json": {"schema": schema}}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": _responses(),
            }
        }
    for path, summary in _GETS.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        parameters = [
            {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
        ]
        paths[path] = {"get": {"summary": summary, "parameters": parameters, "responses": _responses()}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "xLLM", "version": __version__, "description": "OpenAI-compatible LLM server"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _fit_model(properties: dict[str, Any], model: ServedModel) -> None:
    ids = {"type": "integer", "minimum": 0, "maximum": model.vocab_size - 1}
    room = model.max_model_len - 1
    properties["model"]["enum"] = [None, *model.names]
    for name in ("max_tokens", "max_completion_tokens"):
        if name in properties:
            _limit(properties[name], {"maximum": room})
    for name in ("stop_token_ids", "allowed_token_ids"):
        for option in properties[name]["anyOf"]:
            if option["type"] == "array":
                option |= {"items": ids, "minItems": 1}
    if "prompt" in properties:
        text = {"type": "string", "minLength": 1}
        tokens = {"type": "array", "items": ids, "minItems": 1, "maxItems": room}
        several = [
            {"type": "array", "items": item, "minItems": 1, "maxItems": 1024} for item in (text, tokens)
        ]
        properties["prompt"] = {
            "anyOf": [text, tokens, *several],
            "description": properties["prompt"]["description"],
        }


def _limit(schema: dict[str, Any], limits: dict[str, Any]) -> None:
    for option in schema.get("anyOf", [schema]):
        if option.get("type") in ("integer", "number"):
            option.update(limits)


def _responses() -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": _REF + "Error"}}}}
    return {
        "200": {"description": "The answer"},
        "4XX": {"description": "The request is refused; the error says why", **error},
        "503": {"description": "Nothing can serve now", **error},
    }
