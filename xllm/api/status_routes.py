"""GET routes that say how the server is: models, health, readiness, metrics, version, debug."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp

from xllm import __version__
from xllm.api.call import Edge
from xllm.base.metrics import CONTENT_TYPE
from xllm.errors import NotFound


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def list_models(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /v1/models."""
    return _json({"object": "list", "data": [_card(edge, name) for name in edge.backend.model.names]})


async def get_model(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /v1/models/{id}."""
    name = http.path_params["model"]
    if name not in edge.backend.model.names:
        raise NotFound(
            f"model {name[:200]!r} is not served", hint="GET /v1/models lists what is", param="model"
        )
    return _json(_card(edge, name))


def _card(edge: Edge, name: str) -> dict[str, Any]:
    model = edge.backend.model
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "xllm",
        "root": model.names[0],
        "parent": None,
        "max_model_len": model.max_model_len if model.is_known else None,
    }


async def health(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /health: 200 while work advances, 503 when a forward stands still or the engine is gone."""
    state = edge.backend.health()
    instances = {name: msgspec.to_builtins(report) for name, report in state.instances.items()}
    body = {
        "status": "ok" if state.is_healthy else "unhealthy",
        "message": state.message,
        "instances": instances,
    }
    return _json(body, 200 if state.is_healthy else 503)


async def ready(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /ready: 200 while a new request would be taken; 503 while loading and from the first moment of a drain."""
    is_ready = edge.backend.is_ready()
    return _json({"ready": is_ready}, 200 if is_ready else 503)


async def version(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /version."""
    return _json({"version": __version__})


async def metrics(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /metrics: Prometheus text."""
    body = edge.metrics.render(edge.backend, edge.metrics_compat)
    return Response(body, media_type=CONTENT_TYPE)


async def debug_waits(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /debug/waits: who waits for what, since when and until when."""
    return _json({"waits": list(await edge.backend.debug_waits())})


async def debug_request(edge: Edge, http: HttpRequest) -> ASGIApp:
    """GET /debug/requests/{id}: the scheduling decisions about one request."""
    request_id = http.path_params["request_id"]
    rows = list(await edge.backend.debug_request(request_id))
    if not rows:
        raise NotFound(
            f"nothing is known of request {request_id[:200]!r}",
            hint="use the id of the response; old decisions are forgotten",
        )
    return _json({"request_id": request_id, "decisions": rows})
