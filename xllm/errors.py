"""Every error xLLM raises on purpose, as one tree.

    XllmError
    +-- ConfigError                 the configuration cannot work (before anything is loaded)
    +-- ModelError                  a model directory is missing, damaged or of an unknown architecture
    +-- RequestError                one request is wrong; others are untouched          (HTTP 4xx)
    |   +-- InvalidRequest          a field has an impossible value                     400
    |   +-- ContextTooLong          prompt + output do not fit the model's context      400
    |   +-- Unsupported             a known field whose meaning is not built            400
    |   +-- NotFound                no such model, route or request                     404
    |   +-- Unauthorized            missing or wrong API key                            401
    |   +-- PayloadTooLarge         the body exceeds the size limit                     413
    +-- CapacityError               refused for now; carries retry_after_s              429 / 503
    +-- DeadlineExceeded            the deadline of a request or a wait passed          504
    +-- InstanceError               an engine instance failed                           503
    |   +-- InstanceLost            the instance or its connection is gone (retryable)
    |   +-- RequestGivenUp          instances died while they had this request: do not repeat it
    |   +-- TransferError           KV or media bytes did not arrive intact (retryable)
    +-- RegistryError               the registry cannot be reached or refused           503
    |   +-- LeaseExpired            the lease is gone, with every key under it
    |   +-- Compacted               the events after a revision are no longer kept: list again
    +-- ProtocolError               a peer spoke the wrong version or a malformed frame 502
    +-- MissingDependency           an optional extra is needed
    +-- InternalError               our bug; the message says which invariant broke     500

How it is used. *Vocabulary*: one type per kind of fault. *Classification*: :func:`boundary` wraps calls into
foreign libraries and attributes whatever escapes. *Surfacing*: the HTTP status rides on the error. *Form*: what
happened, the value, then ``hint:`` with something that works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class XllmError(Exception):
    """Root of the tree; ``status`` is the HTTP status, ``retryable`` says whether another instance may try."""

    status: int = 500
    type_name: str = "InternalServerError"
    retryable: bool = False

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        self.message = message
        self.hint = hint
        self.param = param
        super().__init__(f"{message}\nhint: {hint}" if hint else message)

    @property
    def public_message(self) -> str:
        """One line for an API client."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class ConfigError(XllmError):
    """The configuration cannot work; raised before weights are loaded."""


class ModelError(XllmError):
    """A model directory is missing, damaged or of an unknown architecture; names file and tensor."""


class RequestError(XllmError):
    """One request is wrong; nothing else is affected."""

    status = 400
    type_name = "BadRequestError"


class InvalidRequest(RequestError):
    """A field has an impossible value."""


class ContextTooLong(RequestError):
    """Prompt plus requested output exceed the model's context."""


class Unsupported(RequestError):
    """A field with a known meaning that is not built; named, never ignored."""


class NotFound(RequestError):
    """No such model, route or request."""

    status = 404
    type_name = "NotFoundError"


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    status = 401
    type_name = "AuthenticationError"


class PayloadTooLarge(RequestError):
    """The request body exceeds the size limit."""

    status = 413
    type_name = "PayloadTooLargeError"


class CapacityError(XllmError):
    """Refused for now: a queue is full (429) or nothing can serve (503). ``retry_after_s`` is our estimate."""

    status = 429
    type_name = "RateLimitError"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        status: int = 429,
        hint: str = "",
        param: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, param=param)
        self.retry_after_s = retry_after_s
        self.status = status
        if status == 503:
            self.type_name = "ServiceUnavailableError"


class DeadlineExceeded(XllmError):
    """The deadline of a request or of a wait passed."""

    status = 504
    type_name = "DeadlineExceededError"


class InstanceError(XllmError):
    """An engine instance failed."""

    status = 503
    type_name = "ServiceUnavailableError"


class InstanceLost(InstanceError):
    """The instance, or the connection to it, is gone."""

    retryable = True


class RequestGivenUp(InstanceError):
    """Instances died while they had this request: it may be what kills them, so it must not be sent again as it is."""

    type_name = "RequestGivenUpError"


class TransferError(InstanceError):
    """Bytes moved between instances or tiers did not arrive intact."""

    retryable = True


class RegistryError(XllmError):
    """The registry cannot be reached, answered nonsense or refused; requests flow on without it."""

    status = 503
    type_name = "ServiceUnavailableError"
    retryable = True


class LeaseExpired(RegistryError):
    """The lease is gone, and with it every key that was written under it: grant a new one."""


class Compacted(RegistryError):
    """The events after the revision asked for are no longer kept: list again, then watch from there."""


class ProtocolError(XllmError):
    """A peer spoke the wrong protocol version or sent a malformed frame."""

    status = 502
    type_name = "BadGatewayError"


class MissingDependency(XllmError):
    """An optional extra is needed for what was asked."""


class InternalError(XllmError):
    """Our bug: an invariant broke; the message says which."""


@contextmanager
def boundary(error: type[XllmError], what: str, *, hint: str = "") -> Iterator[None]:
    """Attribute whatever foreign code raises inside the block to ``error``; our own errors pass unchanged."""
    try:
        yield
    except XllmError:
        raise
    except Exception as exc:
        raise error(f"{what}: {type(exc).__name__}: {exc}", hint=hint) from exc
