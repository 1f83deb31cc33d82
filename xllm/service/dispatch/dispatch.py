"""Dispatch: from a routed request to exactly one terminal output per choice, whatever happens to the engine.

A request is *pending* from ``begin`` until the engine has accepted or refused it, then *running* until every choice
has ended. Events come in (accepted, refused, outputs, instance lost, abort, time), orders go out.

INVARIANTS
- After ``begin`` a request ends in exactly one way: ``on_refused`` (nothing was delivered), or one terminal output per
  choice. A deadline bounds every request, whether the engine answers or not.
- Delivered token indices of a choice have no gap and no repetition.
- Outputs of requests, attempts or choices that are not open go nowhere; their sender is told to stop.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import structs

from xllm.base.clock import Clock
from xllm.base.trace import DecisionTrace
from xllm.errors import DeadlineExceeded, InstanceLost, InvalidRequest, XllmError
from xllm.rpc.failure import to_output_error
from xllm.service.dispatch.commands import Command, Deliver, Send, SendAbort
from xllm.types.ids import InstanceId, RequestId
from xllm.types.output import FinishReason, RequestOutput
from xllm.types.request import Request

DEADLINE_SLACK_S = 5.0
"""The engine ends overdue requests itself; after this much longer we no longer wait for it."""
DEFAULT_DEADLINE_S = 3600.0
_MAX_STALE_DEADLINES = 1024


@dataclass(slots=True)
class _Live:
    request: Request
    instance: InstanceId
    next_index: list[int]
    """Per choice, the token index that comes next."""
    open_choices: set[int]
    is_accepted: bool = False
    lost: XllmError | None = None
    """The connection broke while the answer to submit was on its way."""


class Dispatch:
    """All requests of one service."""

    def __init__(self, clock: Clock, trace: DecisionTrace) -> None:
        self._clock = clock
        self._trace = trace
        self._live: dict[RequestId, _Live] = {}
        self._deadlines: list[tuple[float, RequestId, int]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._live

    def num_inflight(self, instance: InstanceId) -> int:
        """Requests an instance has."""
        return sum(live.instance == instance for live in self._live.values())

    def begin(self, request: Request) -> list[Command]:
        """Take charge of a routed request.

        Raises:
            InvalidRequest: another request has the same id.
        """
        if request.id in self._live:
            raise InvalidRequest(
                f"request id {request.id!r} is in use", hint="choose another request_id", param="request_id"
            )
        num_choices = request.sampling.n
        instance = request.route.prefill
        live = _Live(request, instance, [0] * num_choices, set(range(num_choices)))
        self._live[request.id] = live
        remaining_s = DEFAULT_DEADLINE_S if request.deadline_in_s is None else request.deadline_in_s
        due_s = self._clock.now() + remaining_s + DEADLINE_SLACK_S
        heapq.heappush(self._deadlines, (due_s, request.id, request.attempt))
        if len(self._deadlines) > 2 * len(self._live) + _MAX_STALE_DEADLINES:
            self._forget_stale_deadlines()
        self._trace.record(request.id, "routed", {"instance": instance, "attempt": request.attempt})
        return [Send(instance, request)]

    def on_accepted(self, request_id: RequestId, attempt: int) -> list[Command]:
        """The engine has queued it."""
        live = self._find(request_id, attempt)
        if live is not None:
            live.is_accepted = True
            self._trace.record(request_id, "accepted", {"instance": live.instance})
            if live.lost is not None:
                return [self._fail(request_id, live.lost)]
        return []

    def on_refused(self, request_id: RequestId, attempt: int, error: XllmError) -> list[Command]:
        """The engine did not take it; when that is not certain (no answer in time) it is told to stop."""
        live = self._find(request_id, attempt)
        if live is None:
            return []
        del self._live[request_id]
        self._trace.record(request_id, "refused", {"instance": live.instance, "error": error.message})
        if isinstance(error, DeadlineExceeded):
            return [SendAbort(live.instance, request_id, attempt, None, "no answer to submit")]
        return []

    def on_outputs(self, instance: InstanceId, outputs: Sequence[RequestOutput]) -> list[Command]:
        """One step's outputs of an instance, grouped per request in their order."""
        groups: dict[RequestId, list[RequestOutput]] = {}
        commands: list[Command] = []
        strangers: set[tuple[RequestId, int]] = set()
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None or live.request.attempt != output.attempt or live.instance != instance:
                if output.finish_reason is None:
                    strangers.add((output.request_id, output.attempt))
                continue
            if output.choice not in live.open_choices:
                continue
            merged = self._merge(live, output, commands)
            if merged is not None:
                groups.setdefault(output.request_id, []).append(merged)
        for request_id, attempt in strangers:
            commands.append(SendAbort(instance, request_id, attempt, None, "nobody waits for it"))
        commands += [self._deliver(request_id, found) for request_id, found in groups.items()]
        return commands

    def on_instance_lost(self, instance: InstanceId, error: XllmError) -> list[Command]:
        """Everything it had ends with ``error``; pending requests as soon as their submit is answered."""
        there = [(rid, live) for rid, live in self._live.items() if live.instance == instance]
        for _, live in there:
            live.lost = error
        return [self._fail(request_id, error) for request_id, live in there if live.is_accepted]

    def abort(self, request_id: RequestId, choice: int | None, reason: str) -> list[Command]:
        """End a request or one choice; the engine still sends the terminal outputs."""
        live = self._live.get(request_id)
        if live is None or (choice is not None and choice not in live.open_choices):
            return []
        self._trace.record(request_id, "abort", {"choice": choice, "reason": reason})
        return [SendAbort(live.instance, request_id, live.request.attempt, choice, reason)]

    def fail_all(self, error: XllmError) -> list[Command]:
        """End everything now, for a service that goes away."""
        commands: list[Command] = []
        for request_id, live in list(self._live.items()):
            commands.append(SendAbort(live.instance, request_id, live.request.attempt, None, "shutdown"))
            commands.append(self._fail(request_id, error))
        return commands

    def tick(self) -> list[Command]:
        """End requests whose engine did not end them in time."""
        now_s = self._clock.now()
        commands: list[Command] = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            _, request_id, attempt = heapq.heappop(self._deadlines)
            live = self._find(request_id, attempt)
            if live is not None:
                commands.append(SendAbort(live.instance, request_id, attempt, None, "deadline"))
                error = DeadlineExceeded("the request's deadline passed and the engine did not end it")
                commands.append(self._fail(request_id, error, "deadline"))
        return commands

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold."""
        for request_id, live in self._live.items():
            assert live.open_choices, f"{request_id} is kept without an open choice"
            assert live.open_choices <= set(range(live.request.sampling.n)), request_id
        due = {(request_id, attempt) for _, request_id, attempt in self._deadlines}
        assert all((rid, live.request.attempt) in due for rid, live in self._live.items()), "no deadline"

    def _forget_stale_deadlines(self) -> None:
        """Most requests end long before their deadline; their entries would pile up."""
        self._deadlines = [item for item in self._deadlines if self._find(item[1], item[2]) is not None]
        heapq.heapify(self._deadlines)

    def _find(self, request_id: RequestId, attempt: int) -> _Live | None:
        live = self._live.get(request_id)
        return live if live is not None and live.request.attempt == attempt else None

    def _merge(self, live: _Live, output: RequestOutput, commands: list[Command]) -> RequestOutput | None:
        """Cut repeated tokens, turn a gap into a failure of the choice, keep the books."""
        expected = live.next_index[output.choice]
        repeated = expected - output.first_token_index
        has_tokens = bool(output.token_ids)
        if has_tokens and repeated < 0:
            error = InstanceLost(f"{-repeated} tokens of the stream are missing")
            reason = "gap in the stream"
            commands.append(
                SendAbort(live.instance, output.request_id, output.attempt, output.choice, reason)
            )
            output = _terminal(live, output.choice, error, "error")
        elif has_tokens and repeated > 0:
            kept = output.token_ids[repeated:]
            if not kept and output.finish_reason is None:
                return None
            logprobs = None if output.logprobs is None else output.logprobs[repeated:]
            output = structs.replace(output, first_token_index=expected, token_ids=kept, logprobs=logprobs)
        live.next_index[output.choice] += len(output.token_ids)
        if output.finish_reason is not None:
            live.open_choices.discard(output.choice)
        return output

    def _deliver(self, request_id: RequestId, outputs: Sequence[RequestOutput]) -> Deliver:
        live = self._live[request_id]
        is_last = not live.open_choices
        if is_last:
            del self._live[request_id]
            reasons = ",".join(str(output.finish_reason) for output in outputs if output.finish_reason)
            self._trace.record(request_id, "ended", {"reason": reasons, "instance": live.instance})
        return Deliver(request_id, tuple(outputs), is_last)

    def _fail(self, request_id: RequestId, error: XllmError, reason: FinishReason = "error") -> Deliver:
        live = self._live.pop(request_id)
        self._trace.record(request_id, "failed", {"instance": live.instance, "error": error.message})
        ended = tuple(_terminal(live, choice, error, reason) for choice in sorted(live.open_choices))
        return Deliver(request_id, ended, True)


def _terminal(live: _Live, choice: int, error: XllmError, reason: FinishReason) -> RequestOutput:
    return RequestOutput(
        live.request.id,
        live.request.attempt,
        choice,
        live.next_index[choice],
        (),
        finish_reason=reason,
        error=to_output_error(error),
    )
