"""What the edge needs from whatever runs requests: the service in production, a fake in tests.

The edge hands over a :class:`Request` and a sink; the backend calls the sink from the event loop's thread with every
engine step's outputs. There is no other way back, so one sink may serve several requests (a batch of prompts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from xllm.api.text_pipeline import TextPipeline
from xllm.types.ids import RequestId
from xllm.types.instance import HealthReport, LoadReport
from xllm.types.output import RequestOutput
from xllm.types.request import Request

Row = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What the edge must know about the model to validate requests; measured by the engine."""

    names: tuple[str, ...]
    """Names clients may use; the first is reported."""
    max_model_len: int
    """Prompt + output, in tokens."""
    vocab_size: int
    """Ids the engine accepts: 0 .. vocab_size - 1."""
    block_size: int
    revision: str = ""
    """Weight revision: part of every block hash."""
    created: int = 0
    """Unix time of the start, as /v1/models reports it."""
    is_known: bool = True
    """False: no engine has joined yet, so that only the names mean anything and no request can be taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendHealth:
    """Whether work advances, judged from the engines' own progress counters."""

    is_healthy: bool
    message: str
    """One line: why not, or "ok"."""
    instances: Mapping[str, HealthReport]
    """Last report of each instance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceLoad:
    """One instance as /metrics shows it."""

    id: str
    is_healthy: bool
    load: LoadReport
    block_size: int = 0


class Sample(NamedTuple):
    """One number for /metrics: the running total of a counter, or the value of a gauge."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


class OutputSink(Protocol):
    """Where the outputs of a request go."""

    def deliver(self, outputs: Sequence[RequestOutput]) -> bool:
        """Take one step's outputs; never blocks. False: no room (the reader is too slow) - abort the request."""
        ...


class Backend(Protocol):
    """Runs requests. Every accepted request's choices each get exactly one terminal output through the sink."""

    @property
    def model(self) -> ServedModel:
        """The served model. It changes when another revision takes over: ask again for every call."""
        ...

    @property
    def text(self) -> TextPipeline:
        """Tokenizer and template of the served model."""
        ...

    async def submit(self, request: Request, sink: OutputSink) -> None:
        """Hand over a request; returns once an engine has queued it.

        Raises:
            RequestError: the engine refuses it.
            CapacityError: 429 a queue is full, 503 nothing can serve now or the server is draining.
            InstanceError: the engine is dead.
        """
        ...

    def abort(self, request_id: RequestId, *, choice: int | None = None, reason: str = "abort") -> None:
        """End a request or one choice of it; unknown ids are ignored (it may just have ended)."""
        ...

    def is_ready(self) -> bool:
        """Whether a new request would be taken now."""
        ...

    def health(self) -> BackendHealth:
        """Progress as known now; answers at once."""
        ...

    def loads(self) -> tuple[InstanceLoad, ...]:
        """Last load report of each instance."""
        ...

    def samples(self) -> Sequence[Sample]:
        """What the backend counts itself. Series of a gauge that are not named any more are gone."""
        ...

    async def debug_request(self, request_id: RequestId) -> Sequence[Row]:
        """Scheduling decisions about a request, oldest first; empty when nothing is known."""
        ...

    async def debug_waits(self) -> Sequence[Row]:
        """Waits of the service and of its engines, each with owner, reason, age and time left."""
        ...
