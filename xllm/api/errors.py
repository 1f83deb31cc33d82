"""Typed errors -> OpenAI's nested error object, vLLM's ``type`` names, the status and headers that belong to it."""

from __future__ import annotations

import logging

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from xllm.errors import CapacityError, InternalError, NotFound, RequestError, RequestGivenUp, XllmError
from xllm.types.output import OutputError

logger = logging.getLogger(__name__)


def error_body(error: XllmError) -> dict[str, dict[str, str | int | None]]:
    """``{"error": {"message", "type", "param", "code"}}``; ``code`` is the HTTP status, as in vLLM."""
    inner: dict[str, str | int | None] = {
        "message": error.public_message,
        "type": error.type_name,
        "param": error.param,
        "code": error.status,
    }
    return {"error": inner}


def error_bytes(error: XllmError) -> bytes:
    """The error object as JSON."""
    return msgspec.json.encode(error_body(error))


def error_response(error: XllmError) -> Response:
    """The whole response, with Retry-After or WWW-Authenticate where it helps.

    OpenAI's clients repeat every 5xx by themselves unless ``x-should-retry`` tells them not to.
    """
    headers: dict[str, str] = {}
    if isinstance(error, RequestGivenUp):
        headers["x-should-retry"] = "false"
    elif isinstance(error, CapacityError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    elif error.status == 503:
        headers["Retry-After"] = "5"
    elif error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_bytes(error), error.status, headers, media_type="application/json")


def from_output(error: OutputError) -> XllmError:
    """An engine's error, as far as a client may see it: same status and type, our message."""
    result: XllmError
    if 400 <= error.status < 500 and error.status != 429:
        result = RequestError(error.message)
    elif error.status in (429, 503):
        result = CapacityError(error.message, status=error.status)
    else:
        result = XllmError(error.message)
    result.status = error.status
    result.type_name = error.type_name
    result.retryable = error.retryable
    return result


def from_http_status(status: int, detail: str, http: HttpRequest) -> XllmError:
    """Starlette's own refusals (no such route, wrong method) in our words."""
    if status == 404:
        return NotFound(f"no such route: {http.method} {http.url.path}", hint="/docs lists them")
    result = RequestError(f"{detail}: {http.method} {http.url.path}")
    result.status = status
    if status == 405:
        result.type_name = "MethodNotAllowedError"
    return result


def unexpected(exc: Exception) -> XllmError:
    """Our bug: logged whole here, named only to the client."""
    logger.error("unexpected error in a handler", exc_info=exc)
    return InternalError(f"internal error ({type(exc).__name__}); the server's log has the details")
