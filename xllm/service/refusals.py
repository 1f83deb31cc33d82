"""Refusals: the errors with which a service turns a request away, each with what its sender or the operator can do."""

from __future__ import annotations

from collections.abc import Sequence

from xllm.errors import CapacityError, DeadlineExceeded, InstanceLost, RequestGivenUp
from xllm.types.ids import InstanceId

NO_ENGINE_RETRY_S = 5.0

_ELSEWHERE = "repeat the call on another replica of the service, or here once it is back"


def shutting_down(retry_after_s: float = 1.0) -> CapacityError:
    """503: this replica takes nothing any more."""
    return CapacityError(
        "the server is shutting down", status=503, retry_after_s=retry_after_s, hint=_ELSEWHERE
    )


def no_engine(states: str = "") -> CapacityError:
    """503: no instance can take a request; ``states`` says what they are doing."""
    return CapacityError(
        f"no engine can take a request{': ' if states else ''}{states}",
        status=503,
        retry_after_s=NO_ENGINE_RETRY_S,
        hint="repeat it after Retry-After; the operator sees in /health and in xllm cluster status what they lack",
    )


def not_reached(timeout_s: float, reasons: str) -> InstanceLost:
    """A service that starts has found no engine."""
    return InstanceLost(
        f"no engine could be reached within {timeout_s:g} s: {reasons}",
        hint="see with xllm cluster status who is published, start an engine with the same --registry and model,"
        " and let the service's machine reach its address",
    )


def ended_waiting(reason: str) -> CapacityError:
    """503: a request left the queue before an instance had it."""
    return CapacityError(
        f"the request was ended while it waited for an instance: {reason}",
        status=503,
        hint="no engine has seen it: it may be repeated",
    )


def given_up(killers: Sequence[InstanceId]) -> RequestGivenUp:
    """503, not to be repeated: instances died one after the other while they had the request."""
    return RequestGivenUp(
        f"the request was on {' and '.join(killers)} when they died and is not given to another instance",
        hint="do not repeat it as it is: it may be what kills them; change it, or have the operator look into the"
        " engines' logs first",
    )


def late_in_queue() -> DeadlineExceeded:
    """504: the deadline passed before an instance had room."""
    return DeadlineExceeded(
        "the deadline passed while the request waited for an instance",
        hint="give it a longer timeout_s, or send it when less is waiting (xllm:num_requests_held in /metrics)",
    )


def late_at_engine() -> DeadlineExceeded:
    """504: the deadline passed and the engine said nothing."""
    return DeadlineExceeded(
        "the request's deadline passed and the engine did not end it",
        hint="its engine is slow or stuck: /health names it; repeat the call, with a longer timeout_s if it was short",
    )
