"""What dispatch orders. Whoever drives it (the service, later the simulator) carries the orders out in sequence."""

from __future__ import annotations

from dataclasses import dataclass

from xllm.errors import XllmError
from xllm.types.ids import InstanceId, RequestId
from xllm.types.output import RequestOutput
from xllm.types.request import Request


@dataclass(frozen=True, slots=True)
class Send:
    """Submit one attempt of a request to an instance; answer with ``on_accepted`` or ``on_refused``."""

    instance: InstanceId
    request: Request


@dataclass(frozen=True, slots=True)
class SendAbort:
    """Tell an instance to end an attempt or one of its choices; no answer is awaited."""

    instance: InstanceId
    request_id: RequestId
    attempt: int
    choice: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """An engine has queued the request for the first time: its submitter may go on."""

    request_id: RequestId


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request is over before any engine queued it: its submitter gets the error, its reader nothing."""

    request_id: RequestId
    error: XllmError


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand outputs to the reader of a request."""

    request_id: RequestId
    outputs: tuple[RequestOutput, ...]
    is_last: bool
    """Every choice has had its terminal output: nothing follows."""


Command = Send | SendAbort | Accepted | Refuse | Deliver
