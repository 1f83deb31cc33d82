"""Wires the edge: routes, error handlers, guard. ``build_app`` is the only place that knows them all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from xllm import __version__
from xllm.api.backend import Backend
from xllm.api.call import CLIENT_CLOSED, Edge
from xllm.api.chat import chat_completions
from xllm.api.completions import completions
from xllm.api.errors import error_response, from_http_status, unexpected
from xllm.api.generation import ClientGone
from xllm.api.guard import Guard, KeyRing, route_path
from xllm.api.observe import EdgeMetrics
from xllm.api.openapi import build_openapi
from xllm.api.preprocess import Preprocessor
from xllm.api.status_routes import (
    debug_request,
    debug_waits,
    get_model,
    health,
    list_models,
    metrics,
    ready,
    version,
)
from xllm.api.text_routes import detokenize, tokenize
from xllm.base.clock import Clock, MonotonicClock
from xllm.base.metrics import Metrics
from xllm.config.api import ApiConfig
from xllm.errors import XllmError

Handler = Callable[[Edge, HttpRequest], Awaitable[ASGIApp]]

_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{model:path}", get_model),
    ("GET", "/health", health),
    ("GET", "/ready", ready),
    ("GET", "/metrics", metrics),
    ("GET", "/version", version),
    ("GET", "/debug/waits", debug_waits),
    ("GET", "/debug/requests/{request_id:path}", debug_request),
)


class Endpoint:
    """One route as a plain ASGI application: no dependency solving and no task group around a stream."""

    def __init__(self, edge: Edge, route: str, handler: Handler) -> None:
        self._edge = edge
        self._route = route
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the handler and whatever it answers; every failure before the first byte becomes an error object."""
        scope["route_name"] = self._route
        answer: ASGIApp
        try:
            answer = await self._handler(self._edge, HttpRequest(scope, receive))
        except ClientGone:
            answer = Response(status_code=CLIENT_CLOSED)
        except XllmError as error:
            answer = error_response(error)
        except Exception as exc:
            answer = error_response(unexpected(exc))
        await answer(scope, receive, send)


class FrontDoor:
    """Plain routes by one look-up; every other request goes to the application.

    A framework's middlewares stand between a response and its socket for every chunk of it. They have nothing to do
    here, since an endpoint answers its own errors.
    """

    def __init__(self, endpoints: Mapping[tuple[str, str], Endpoint], app: ASGIApp) -> None:
        self._endpoints = endpoints
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find who answers."""
        key = (scope["method"], route_path(scope)) if scope["type"] == "http" else ("", "")
        await self._endpoints.get(key, self._app)(scope, receive, send)


def build_app(backend: Backend, config: ApiConfig, *, clock: Clock | None = None) -> ASGIApp:
    """The ASGI application over ``backend``, whose model must have its names by now."""
    clock = clock or MonotonicClock()
    labels = {"model_name": backend.model.names[0], "engine": "0"}
    edge = Edge(
        backend=backend,
        preprocessor=Preprocessor(
            model=backend.model, text=backend.text, max_seconds=config.request_timeout_s
        ),
        metrics=EdgeMetrics(Metrics(labels), clock),
        max_body_bytes=config.max_body_bytes,
        metrics_compat=config.metrics_compat,
    )
    app = FastAPI(title="xLLM", version=__version__, redoc_url=None, redirect_slashes=False)
    endpoints: dict[tuple[str, str], Endpoint] = {}
    for method, path, handler in _ROUTES:
        endpoint = Endpoint(edge, path, handler)
        app.router.routes.append(Route(path, endpoint, methods=[method]))
        if "{" not in path:
            endpoints[method, path] = endpoint
    app.add_exception_handler(HTTPException, _on_http_error)
    describe = lru_cache(maxsize=1)(build_openapi)
    app.openapi = lambda: describe(backend.model)  # type: ignore[method-assign]
    guarded: ASGIApp = Guard(
        FrontDoor(endpoints, app), KeyRing(config.api_key, config.admin_api_key), edge.metrics
    )
    if config.allowed_origins:
        origins = list(config.allowed_origins)
        guarded = CORSMiddleware(guarded, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return guarded


async def _on_http_error(http: HttpRequest, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    response = error_response(from_http_status(exc.status_code, str(exc.detail), http))
    for name, value in (exc.headers or {}).items():
        response.headers[name] = value
    return response
