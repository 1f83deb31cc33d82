"""Offers: the next attempt of a request, asked of another instance while the present attempt goes on.

A request leaves an instance that wants to be empty only for one that has queued it, so that no refusal, no full cluster
and no slow answer ends or delays a stream that could have gone on.

INVARIANTS
- An instance with an offer is counted as having the request, besides the one where it runs.
- An offer ends in one way: taken over, or withdrawn and its instance told so.
"""

from __future__ import annotations

from collections import Counter

from xllm.base.trace import DecisionTrace
from xllm.service.dispatch.commands import Command, Send, SendAbort
from xllm.service.dispatch.live_request import LiveRequest
from xllm.types.ids import InstanceId
from xllm.types.request import Request
from xllm.types.wire import MIGRATED


class Offers:
    """Makes and ends the offers of one dispatch; see the module."""

    def __init__(self, inflight: Counter[InstanceId], trace: DecisionTrace) -> None:
        self._inflight = inflight
        self._trace = trace
        self.strays: list[Command] = []
        """Withdrawals of offers whose request has ended; they go out with the next orders."""
        self.num_migrated = 0

    def make(self, live: LiveRequest, offer: Request) -> Send:
        """Ask the instance of the offer's route."""
        live.offer, live.last_attempt = offer, offer.attempt
        self._inflight[offer.route.prefill] += 1
        fields = {"instance": offer.route.prefill, "attempt": offer.attempt}
        self._trace.record(live.first.id, "offered", fields)
        return Send(offer.route.prefill, offer)

    def take_over(self, live: LiveRequest) -> list[Command]:
        """The offer is the attempt that counts from now on; the one before, where it still runs, is told to stop."""
        offer, before, name = live.offer, live.request, live.first.id
        assert offer is not None
        commands: list[Command] = []
        if live.instance:
            commands.append(SendAbort(live.instance, name, before.attempt, None, MIGRATED))
            count_out(self._inflight, live.instance)
            self.num_migrated += 1
        fields = {
            "from": live.instance,
            "instance": offer.route.prefill,
            "attempt": offer.attempt,
            "resumed_tokens": live.num_delivered,
        }
        self._trace.record(name, "migrated", fields)
        live.instance, live.request, live.offer = offer.route.prefill, offer, None
        for choice in offer.open_choices:
            if choice not in live.open_choices:  # it ended after the offer was made
                commands.append(SendAbort(live.instance, name, offer.attempt, choice, "it has ended"))
        return commands

    def withdraw(self, live: LiveRequest, reason: str) -> list[Command]:
        """Nothing comes of the offer, if there is one."""
        offer, live.offer = live.offer, None
        if offer is None:
            return []
        instance = offer.route.prefill
        count_out(self._inflight, instance)
        self._trace.record(live.first.id, "withdrawn", {"instance": instance, "because": reason})
        return [SendAbort(instance, live.first.id, offer.attempt, None, "the offer is withdrawn")]

    def take_strays(self) -> list[Command]:
        """Orders that are left from requests that ended."""
        strays, self.strays = self.strays, []
        return strays


def count_out(inflight: Counter[InstanceId], instance: InstanceId) -> None:
    """One request fewer; who has none is not kept."""
    inflight[instance] -= 1
    if not inflight[instance]:
        del inflight[instance]
