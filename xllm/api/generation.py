"""Generation: one API call on the backend - one or several requests, their choices, their end.

INVARIANTS
- After ``close`` (or an error, or the end) nothing of the call is left running in the engine.
- The buffer between backend and reader is bounded; a reader that is too slow ends its call, nobody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from xllm.api.backend import Backend
from xllm.api.choice_text import ApiFinishReason, ChoiceText, Delta
from xllm.api.observe import CallObserver
from xllm.errors import CapacityError, DeadlineExceeded, XllmError
from xllm.rpc.failure import from_output_error
from xllm.types.output import PositionLogprobs, RequestOutput
from xllm.types.request import Request

MAX_BUFFERED_OUTPUTS = 4096
"""Outputs that may wait for one slow reader; at one per token several seconds of the fastest stream."""


class ClientGone(Exception):
    """Nobody reads the call any more; there is nobody to tell."""


class OutputBuffer:
    """An :class:`~xllm.api.backend.OutputSink` that one reader empties."""

    __slots__ = ("_is_closed", "_loop", "_max_outputs", "_pending", "_waiter", "has_overflowed")

    def __init__(self, max_outputs: int = MAX_BUFFERED_OUTPUTS) -> None:
        self._pending: list[RequestOutput] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._max_outputs = max_outputs
        self._is_closed = False
        self.has_overflowed = False

    def deliver(self, outputs: Sequence[RequestOutput]) -> bool:
        """Take outputs; False when the reader is too far behind. A closed buffer drops them."""
        if self._is_closed:
            return True
        if len(self._pending) + len(outputs) > self._max_outputs:
            self.has_overflowed = True
            self._wake()
            return False
        self._pending.extend(outputs)
        self._wake()
        return True

    async def take(self) -> list[RequestOutput]:
        """Everything that waits, at least one output. The backend bounds this wait: every request ends.

        Raises:
            ClientGone: the buffer was closed.
            CapacityError: outputs were lost because the reader was too slow.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # once: before Python 3.12 every call asks the kernel
        while not (self._pending or self._is_closed or self.has_overflowed):
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._is_closed:
            raise ClientGone
        if self.has_overflowed:
            raise CapacityError("the client reads too slowly: the stream was ended", status=503)
        taken, self._pending = self._pending, []
        return taken

    def close(self) -> None:
        """Drop what waits and whatever still comes."""
        self._is_closed = True
        self._pending.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ChoiceResult(Struct):
    """A whole choice, collected."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs]
    finish_reason: ApiFinishReason | None
    stop_reason: int | str | None


class RequestFacts(Struct):
    """What is known of one request of a call besides its choices."""

    num_cached_tokens: int = 0
    prompt_logprobs: Sequence[PositionLogprobs | None] | None = None


class Generation:
    """Requests of one call; choice ``c`` of request ``r`` is choice ``r * n + c`` of the response."""

    def __init__(self, backend: Backend, requests: Sequence[Request], observer: CallObserver) -> None:
        assert requests, "a call has at least one request"
        self.requests = tuple(requests)
        self.facts = tuple(RequestFacts() for _ in requests)
        self._backend = backend
        self._observer = observer
        self._buffer = OutputBuffer(MAX_BUFFERED_OUTPUTS * len(self.requests))
        self._num_choices = self.requests[0].sampling.n
        self._position = {request.id: index for index, request in enumerate(self.requests)}
        tokenizer = backend.text.tokenizer
        self.choices = tuple(
            ChoiceText(tokenizer, request, index * self._num_choices + choice)
            for index, request in enumerate(self.requests)
            for choice in range(self._num_choices)
        )
        self._num_open = len(self.choices)
        self._is_closed = False
        self.was_left = False
        """Whether the client went away before the end."""
        self._started: list[str] = []

    @property
    def is_done(self) -> bool:
        """Whether every choice has its finish reason."""
        return self._num_open == 0

    @property
    def num_prompt_tokens(self) -> int:
        """Over all requests of the call."""
        return sum(request.num_prompt_tokens for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Over all choices, so far."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache, over all requests."""
        return sum(fact.num_cached_tokens for fact in self.facts)

    async def start(self) -> None:
        """Submit every request; when one is refused the others are taken back.

        Raises:
            XllmError: whatever the backend refuses with.
        """
        try:
            for request in self.requests:
                self._started.append(request.id)
                await self._backend.submit(request, self._buffer)
        except BaseException as exc:
            self.close(exc)
            raise

    async def next_deltas(self) -> list[Delta]:
        """What came since the last call; only deltas that say something. Empty only when nothing showed yet.

        Raises:
            XllmError: a request failed; the whole call is ended.
        """
        try:
            outputs = await self._buffer.take()
            deltas = [delta for output in outputs if (delta := self._apply(output)) is not None]
        except BaseException as exc:
            self.close(exc)
            raise
        self._observer.saw_deltas(deltas)
        if self._num_open == 0:
            self._observer.ended(None)
        return deltas

    async def collect(self) -> list[ChoiceResult]:
        """Run to the end; all choices in order."""
        results = [ChoiceResult(c.index, "", [], [], None, None) for c in self.choices]
        texts: list[list[str]] = [[] for _ in results]
        while not self.is_done:
            for delta in await self.next_deltas():
                result = results[delta.index]
                texts[delta.index].append(delta.text)
                result.token_ids.extend(delta.token_ids)
                result.logprobs.extend(delta.logprobs)
                result.finish_reason, result.stop_reason = delta.finish_reason, delta.stop_reason
        for result, parts in zip(results, texts, strict=True):
            result.text = "".join(parts)
        return results

    def close(self, cause: BaseException | None = None) -> None:
        """Nobody reads any more: end in the engine whatever still runs. Safe to call again."""
        self._buffer.close()
        if self._num_open and not self._is_closed:
            self._is_closed = True
            self.was_left = isinstance(cause, ClientGone)
            for request_id in self._started:
                self._backend.abort(request_id, reason="abort")
            self._observer.ended(cause or ClientGone())

    def _apply(self, output: RequestOutput) -> Delta | None:
        position = self._position[output.request_id]
        choice = self.choices[position * self._num_choices + output.choice]
        if output.usage is not None:
            self._observer.saw_usage(output.usage)
        if choice.is_finished:
            return None
        _raise_failure(output)
        facts = self.facts[position]
        if output.num_cached_tokens is not None and output.choice == 0:
            facts.num_cached_tokens = output.num_cached_tokens
        if output.prompt_logprobs is not None:
            facts.prompt_logprobs = output.prompt_logprobs
        delta = choice.push(output)
        if delta.finish_reason is not None:
            self._num_open -= 1
            if output.finish_reason is None:  # a stop string: only the edge has seen it
                self._backend.abort(output.request_id, choice=output.choice, reason="stop")
        return delta if delta.token_ids or delta.text or delta.finish_reason else None


def _raise_failure(output: RequestOutput) -> None:
    """Errors, deadlines and aborts that nobody here asked for are errors of the call, never a clean end."""
    if output.finish_reason not in ("error", "deadline", "abort"):
        return
    error: XllmError
    if output.error is not None:
        error = from_output_error(output.error)
    elif output.finish_reason == "deadline":
        error = DeadlineExceeded("the request's deadline passed before it was finished")
    else:
        error = CapacityError("the server ended the request before it was finished", status=503)
    raise error
