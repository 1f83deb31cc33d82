"""Dispatch: from a routed request to exactly one terminal output per choice, whatever happens to the engines.

A request is *pending* until an engine has queued it, then *running*; it is *parked* while no instance has it and one
is awaited. When an instance is lost, the next attempt continues on another one after the tokens already delivered.
An instance that wants to be empty keeps each of its requests until another one has queued the next attempt, the
*offer*. Events come in (accepted, refused, outputs, instance lost, abort, time), orders go out.

INVARIANTS
- After ``begin`` a request ends in exactly one way: ``Refuse`` (no engine ever queued it, nothing was delivered), or
  one terminal output per choice. A deadline bounds every request, whether an engine answers or not.
- Delivered token indices of a choice have no gap and no repetition.
- Outputs of requests, attempts or choices that are not open go nowhere; their sender is told to stop.
- At most one attempt of a request is listened to; its number only grows. An offer becomes that attempt when its engine
  has queued it, or when the attempt before is lost; else it is withdrawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import structs

from xllm.base.clock import Clock
from xllm.base.tally import Tally
from xllm.base.trace import DecisionTrace
from xllm.errors import CapacityError, DeadlineExceeded, InstanceLost, InvalidRequest, XllmError
from xllm.service.dispatch.commands import Accepted, Command, Deliver, Refuse, Send, SendAbort
from xllm.service.dispatch.deadlines import Deadlines
from xllm.service.dispatch.live_request import LiveRequest
from xllm.service.dispatch.offers import Offers, count_out
from xllm.service.dispatch.retry import RetryLimits
from xllm.service.refusals import given_up, late_at_engine
from xllm.types.ids import InstanceId, RequestId
from xllm.types.output import FinishReason, RequestOutput
from xllm.types.request import Request, Route

DEADLINE_SLACK_S = 5.0
"""The engine ends overdue requests itself; after this much longer we no longer wait for it."""
DEFAULT_DEADLINE_S = 3600.0
MAX_OFFERS = 64
"""Unanswered offers of one instance's requests at a time."""

Chooser = Callable[[Request, frozenset[InstanceId]], Route | None]
"""(request, instances to avoid) -> where its next attempt goes, or None when nobody else can take it."""


def no_failover(request: Request, avoid: frozenset[InstanceId]) -> Route | None:
    """Nowhere: an attempt that is lost ends its request."""
    return None


class Dispatch:
    """All requests of one service."""

    def __init__(
        self,
        clock: Clock,
        trace: DecisionTrace,
        *,
        choose: Chooser = no_failover,
        limits: RetryLimits | None = None,
    ) -> None:
        self._clock = clock
        self._trace = trace
        self.choose = choose
        """Set by whoever knows the cluster."""
        self._limits = limits or RetryLimits()
        self._live: dict[RequestId, LiveRequest] = {}
        self._parked: dict[RequestId, LiveRequest] = {}
        self._inflight = Tally()
        self._deadlines = Deadlines(self._live)
        self._offers = Offers(self._inflight, trace)
        self.num_failovers = 0
        """Attempts started because one before was lost."""

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._live

    @property
    def num_parked(self) -> int:
        """Requests that wait for an instance."""
        return len(self._parked)

    def num_inflight(self, instance: InstanceId) -> int:
        """Requests an instance has, or was offered."""
        return self._inflight[instance]

    def take_recounted(self) -> set[InstanceId]:
        """Instances for which that number was set since the last call."""
        return self._inflight.take_changed()

    @property
    def num_migrated(self) -> int:
        """Attempts that took over from one that could have gone on."""
        return self._offers.num_migrated

    # -- events --

    def begin(self, request: Request) -> list[Command]:
        """Take charge of a routed request.

        Raises:
            InvalidRequest: another request has the same id.
        """
        if request.id in self._live:
            raise InvalidRequest(
                f"request id {request.id!r} is in use", hint="choose another request_id", param="request_id"
            )
        now_s = self._clock.now()
        remaining_s = DEFAULT_DEADLINE_S if request.deadline_in_s is None else request.deadline_in_s
        live = LiveRequest(request, begun_s=now_s, due_s=now_s + remaining_s + DEADLINE_SLACK_S)
        self._live[request.id] = live
        self._inflight[live.instance] += 1
        self._deadlines.add(live)
        self._trace.record(request.id, "routed", {"instance": live.instance, "attempt": request.attempt})
        return [Send(live.instance, request)]

    def on_accepted(self, request_id: RequestId, attempt: int) -> list[Command]:
        """The engine has queued it."""
        live = self._find(request_id, attempt)
        if live is None:
            offered = self._find_offered(request_id, attempt)
            return [] if offered is None else self._offers.take_over(offered)
        self._trace.record(request_id, "accepted", {"instance": live.instance})
        live.refused_by.clear()
        live.num_waits = 0
        is_first, live.is_accepted = not live.is_accepted, True
        return [Accepted(request_id)] if is_first else []

    def on_refused(self, request_id: RequestId, attempt: int, error: XllmError) -> list[Command]:
        """The engine did not take it; when that is not certain (no answer in time) it is told to stop."""
        live = self._find(request_id, attempt)
        if live is None:
            offered = self._find_offered(request_id, attempt)
            return [] if offered is None else self._offers.withdraw(offered, error.message)
        instance = live.instance
        self._trace.record(request_id, "refused", {"instance": instance, "error": error.message})
        if isinstance(error, CapacityError):
            if live.offer is not None:
                return self._offers.take_over(live)
            self._leave(live)
            live.refused_by.add(instance)
            return self._place(live, error, frozenset(live.refused_by))
        if isinstance(error, DeadlineExceeded):
            abort = SendAbort(instance, request_id, attempt, None, "no answer to submit")
            return [abort, *self._lose(live, InstanceLost(error.message), is_death=False)]
        if isinstance(error, InstanceLost):
            return self._lose(live, error, is_death=False)
        return [self._fail(live, error)]

    def on_outputs(self, instance: InstanceId, outputs: Sequence[RequestOutput]) -> list[Command]:
        """One step's outputs of an instance, grouped per request in their order."""
        groups: dict[RequestId, list[RequestOutput]] = {}
        commands: list[Command] = []
        strangers: set[tuple[RequestId, int]] = set()
        lost: list[tuple[LiveRequest, InstanceLost, bool]] = []
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None or live.request.attempt != output.attempt or live.instance != instance:
                if live is None or not live.is_offered(instance, output.attempt):
                    if output.finish_reason is None:
                        strangers.add((output.request_id, output.attempt))
                    continue
                commands += self._offers.take_over(live)  # its outputs have overtaken the answer to submit
            if output.choice not in live.open_choices or any(live is item[0] for item in lost):
                continue
            if live.is_gap(output):
                missing = output.first_token_index - len(live.output_ids[output.choice])
                lost.append((live, InstanceLost(f"{missing} tokens of the stream are missing"), False))
                continue
            if output.finish_reason == "error" and output.error is not None and output.error.retryable:
                # An engine that ends says InstanceLost; one that broke says InstanceError.
                is_death = output.error.type_name == "InstanceError"
                lost.append((live, InstanceLost(output.error.message), is_death))
                continue
            merged = live.merge(output)
            if merged is not None:
                groups.setdefault(output.request_id, []).append(merged)
        for request_id, attempt in strangers:
            commands.append(SendAbort(instance, request_id, attempt, None, "nobody waits for it"))
        commands += [self._deliver(self._live[request_id], found) for request_id, found in groups.items()]
        for live, lost_error, is_death in lost:
            attempt = live.request.attempt
            commands.append(SendAbort(instance, live.first.id, attempt, None, "the attempt is given up"))
            commands += self._lose(live, lost_error, is_death=is_death)
        return commands + self._offers.take_strays() if self._offers.strays else commands

    def on_instance_lost(
        self, instance: InstanceId, error: XllmError, *, is_death: bool = True
    ) -> list[Command]:
        """Everything it had continues elsewhere, or ends with ``error`` when there is nowhere to go."""
        if not self._inflight[instance]:
            return []
        commands: list[Command] = []
        for live in [live for live in self._live.values() if live.is_offered(instance)]:
            commands += self._offers.withdraw(live, error.message)
        for live in [live for live in self._live.values() if live.instance == instance]:
            abort = SendAbort(instance, live.first.id, live.request.attempt, None, "the instance was lost")
            commands += [abort, *self._lose(live, error, is_death=is_death)]
        return commands

    def on_instance_back(self, instance: InstanceId) -> list[Command]:
        """The same incarnation is back, or heard again: it had not died. Who waits for an instance tries again."""
        for live in self._live.values():
            live.killers = [name for name in live.killers if name != instance]
        return self.retry_parked(now=True)

    def migrate(self, instance: InstanceId) -> list[Command]:
        """The instance wants to be empty: offer its requests to others; who has queued one goes on with it.

        To be called again and again: a request that nobody takes stays, and is offered again the next time. It counts
        neither as a loss nor as a death.
        """
        if not self._inflight[instance] or self.choose is no_failover:
            return []
        mine = [live for live in self._live.values() if live.instance == instance and live.is_accepted]
        num_open = sum(live.offer is not None for live in mine)
        due = [live for live in mine if live.offer is None and not live.ending]
        due.sort(key=lambda live: live.num_offers)  # stable: who was refused before comes later
        commands: list[Command] = []
        for live in due[: max(0, MAX_OFFERS - num_open)]:
            commands += self._offer(live)
        return commands

    def is_offered(self, request_id: RequestId) -> bool:
        """Whether another instance was asked to go on with a request that runs."""
        live = self._live.get(request_id)
        return live is not None and live.offer is not None

    def abort(self, request_id: RequestId, choice: int | None, reason: str) -> list[Command]:
        """End a request or one choice; an engine that has it still sends the terminal outputs."""
        live = self._live.get(request_id)
        if live is None or (choice is not None and choice not in live.open_choices):
            return []
        self._trace.record(request_id, "abort", {"choice": choice, "reason": reason})
        for each in live.open_choices if choice is None else (choice,):
            live.ending[each] = "stop" if reason == "stop" else "abort"
        if not live.instance:
            return self._end_asked(live)
        withdrawn = self._offers.withdraw(live, reason)
        return [*withdrawn, SendAbort(live.instance, request_id, live.request.attempt, choice, reason)]

    def fail_all(self, error: XllmError) -> list[Command]:
        """End everything now, for a service that goes away."""
        commands: list[Command] = []
        for request_id, live in list(self._live.items()):
            if live.instance:
                commands.append(SendAbort(live.instance, request_id, live.request.attempt, None, "shutdown"))
            commands.append(self._fail(live, error))
        return commands + self._offers.take_strays()

    def tick(self) -> list[Command]:
        """End requests whose engine did not end them in time; try again for those that wait for an instance."""
        now_s = self._clock.now()
        commands: list[Command] = []
        for live in self._deadlines.pop_due(now_s):
            if live.instance:
                abort = SendAbort(live.instance, live.first.id, live.request.attempt, None, "deadline")
                commands.append(abort)
            commands.append(self._fail(live, late_at_engine(), "deadline"))
        return commands + self._offers.take_strays() + self.retry_parked()

    def retry_parked(self, *, now: bool = False) -> list[Command]:
        """Place parked requests whose pause is over (``now``: all of them)."""
        if not self._parked:
            return []
        now_s = self._clock.now()
        due = [live for live in self._parked.values() if now or live.retry_s <= now_s]
        commands: list[Command] = []
        for live in due:
            assert live.reason is not None, "parked without a reason"
            commands += self._place(live, live.reason, frozenset())
        return commands

    def next_retry_in_s(self) -> float | None:
        """When ``tick`` has a parked request to place; None: nobody is parked."""
        if not self._parked:
            return None
        return max(0.0, min(live.retry_s for live in self._parked.values()) - self._clock.now())

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold."""
        for request_id, live in self._live.items():
            assert live.open_choices, f"{request_id} is kept without an open choice"
            assert live.open_choices <= set(range(live.first.sampling.n)), request_id
            assert (request_id in self._parked) == (not live.instance), request_id
            if live.offer is not None:
                assert live.instance not in ("", live.offer.route.prefill) and not live.ending, request_id
                assert live.request.attempt < live.offer.attempt <= live.last_attempt, request_id
        self._deadlines.check()
        held = Counter(live.instance for live in self._live.values() if live.instance)
        held += Counter(live.offer.route.prefill for live in self._live.values() if live.offer is not None)
        assert held == +self._inflight, f"{held} is not {self._inflight}"
        assert self._parked.keys() <= self._live.keys()

    # -- attempts --

    def _lose(self, live: LiveRequest, error: XllmError, *, is_death: bool) -> list[Command]:
        """The attempt is over without an end: go on elsewhere, within the limits."""
        lost = live.instance
        self._leave(live)
        live.num_losses += live.offer is None
        self._trace.record(live.first.id, "lost", {"instance": lost, "error": error.message})
        commands = self._end_asked(live)
        if not live.open_choices:
            return commands
        if is_death:
            live.killers.append(lost)
        if len(live.killers) >= self._limits.max_deaths:
            return [*commands, self._fail(live, given_up(live.killers))]
        live.refused_by.clear()
        if live.offer is not None:
            return commands + self._offers.take_over(live)
        return commands + self._place(live, error, frozenset((lost,)))

    def _place(self, live: LiveRequest, error: XllmError, avoid: frozenset[InstanceId]) -> list[Command]:
        """Start the next attempt, preferably not on ``avoid``; or wait; or give up with ``error``."""
        if self.choose is no_failover:
            return [self._fail(live, error)]
        if live.num_losses > self._limits.max_losses:
            return [self._fail(live, error)]
        request = self._next_request(live)
        route = self.choose(request, avoid)
        if route is None and avoid and not live.refused_by:
            route = self.choose(request, frozenset())
        if route is None:
            return self._park(live, error)
        self._parked.pop(live.first.id, None)
        live.request = structs.replace(request, route=route)
        live.last_attempt = live.request.attempt
        live.instance = route.prefill
        self._inflight[live.instance] += 1
        self.num_failovers += 1
        self._trace.record(
            live.first.id,
            "routed",
            {
                "instance": live.instance,
                "attempt": live.request.attempt,
                "resumed_tokens": live.num_delivered,
                "because": error.message,
            },
        )
        return [Send(live.instance, live.request)]

    def _park(self, live: LiveRequest, error: XllmError) -> list[Command]:
        """Wait for an instance; a request that nobody has queued yet does not wait for room."""
        now_s = self._clock.now()
        if not live.is_accepted and isinstance(error, CapacityError):
            return [self._fail(live, error)]
        if live.num_waits == 0:
            live.parked_s = now_s
        if now_s - live.parked_s >= self._limits.max_wait_s:
            return [self._fail(live, error)]
        live.num_waits += 1
        live.refused_by.clear()
        live.retry_s = now_s + self._limits.pause_s(live.num_waits)
        live.reason = error
        if live.first.id not in self._parked:
            self._parked[live.first.id] = live
            self._trace.record(live.first.id, "parked", {"error": error.message})
        return []

    def _next_request(self, live: LiveRequest) -> Request:
        now_s = self._clock.now()
        remaining_s = live.due_s - DEADLINE_SLACK_S - now_s
        deadline_in_s = None if live.first.deadline_in_s is None else max(0.001, remaining_s)
        return live.next_request(live.first.route, now_s, deadline_in_s)

    def _leave(self, live: LiveRequest) -> None:
        if live.instance:
            count_out(self._inflight, live.instance)
            live.instance = ""

    def _offer(self, live: LiveRequest) -> list[Command]:
        """Ask another instance to go on with it; it runs where it is until that one has queued it."""
        request = self._next_request(live)
        live.num_offers += 1
        route = self.choose(request, frozenset((live.instance,)))
        return [] if route is None else [self._offers.make(live, structs.replace(request, route=route))]

    # -- ends --

    def _end_asked(self, live: LiveRequest) -> list[Command]:
        """Choices whose end was asked for end here: their engine cannot say it any more."""
        asked = sorted(live.open_choices & live.ending.keys())
        if not asked:
            return []
        return [self._deliver(live, [live.end(choice, live.ending[choice], None) for choice in asked])]

    def _deliver(self, live: LiveRequest, outputs: Sequence[RequestOutput]) -> Deliver:
        is_last = not live.open_choices
        live.is_accepted = True
        if is_last:
            reasons = ",".join(str(output.finish_reason) for output in outputs if output.finish_reason)
            self._trace.record(live.first.id, "ended", {"reason": reasons, "instance": live.instance})
            self._forget(live)
        return Deliver(live.first.id, tuple(outputs), is_last)

    def _fail(self, live: LiveRequest, error: XllmError, reason: FinishReason = "error") -> Command:
        fields = {"instance": live.instance, "error": error.message}
        self._trace.record(live.first.id, "failed", fields)
        self._forget(live)
        if not live.is_accepted:
            return Refuse(live.first.id, error)
        ended = tuple(live.end(choice, reason, error) for choice in sorted(live.open_choices))
        return Deliver(live.first.id, ended, True)

    def _forget(self, live: LiveRequest) -> None:
        self._leave(live)
        if live.offer is not None:
            self._offers.strays += self._offers.withdraw(live, "it has ended")
        self._parked.pop(live.first.id, None)
        del self._live[live.first.id]

    def _find(self, request_id: RequestId, attempt: int) -> LiveRequest | None:
        live = self._live.get(request_id)
        return live if live is not None and live.request.attempt == attempt and live.instance else None

    def _find_offered(self, request_id: RequestId, attempt: int) -> LiveRequest | None:
        live = self._live.get(request_id)
        return live if live is not None and live.offer is not None and live.offer.attempt == attempt else None
