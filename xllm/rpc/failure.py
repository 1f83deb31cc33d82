"""Errors across the wire: an XllmError becomes a Failure and, on the other side, the same type again."""

from __future__ import annotations

from xllm import errors
from xllm.errors import CapacityError, InternalError, XllmError
from xllm.types.output import OutputError
from xllm.types.wire import Failure


def _tree(root: type[XllmError]) -> dict[str, type[XllmError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found.update(_tree(child))
    return found


ERROR_TYPES = _tree(XllmError)
"""Every error of :mod:`xllm.errors` by the name that travels."""

_API_TYPES: dict[str, type[XllmError]] = {kind.type_name: kind for kind in reversed(ERROR_TYPES.values())}
_API_TYPES |= {"BadRequestError": errors.InvalidRequest, "ServiceUnavailableError": errors.InstanceError}


def to_output_error(error: BaseException) -> OutputError:
    """What a terminal output says of ``error``; foreign exceptions become InternalError."""
    if isinstance(error, XllmError):
        return OutputError(type(error).__name__, error.status, error.message, error.retryable)
    return OutputError(InternalError.__name__, InternalError.status, f"{type(error).__name__}: {error}")


def to_failure(error: BaseException) -> Failure:
    """The refusal of a call."""
    if not isinstance(error, XllmError):
        return Failure(error=to_output_error(error))
    return Failure(
        error=to_output_error(error),
        hint=error.hint,
        param=error.param,
        retry_after_s=error.retry_after_s if isinstance(error, CapacityError) else None,
    )


def from_output_error(error: OutputError, *, hint: str = "", param: str | None = None) -> XllmError:
    """The typed error that ``error`` was, found by its name here or by the API's name for its kind.

    Anything else becomes an XllmError with the same status.
    """
    kind = ERROR_TYPES.get(error.type_name) or _API_TYPES.get(error.type_name, XllmError)
    if issubclass(kind, CapacityError):
        return kind(error.message, status=error.status, hint=hint, param=param)
    rebuilt = kind(error.message, hint=hint, param=param)
    rebuilt.status = error.status
    rebuilt.retryable = error.retryable
    return rebuilt


def from_failure(failure: Failure) -> XllmError:
    """The typed error behind a refusal, ready to be raised."""
    rebuilt = from_output_error(failure.error, hint=failure.hint, param=failure.param)
    if isinstance(rebuilt, CapacityError) and failure.retry_after_s is not None:
        rebuilt.retry_after_s = failure.retry_after_s
    return rebuilt
