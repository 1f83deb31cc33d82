"""LiveRequest: the books of one request - what its reader has, what is owed, where its attempt runs.

INVARIANTS
- ``output_ids[c]`` are exactly the tokens delivered of choice c: an attempt that takes over continues after them.
- ``instance`` is "" while no attempt runs (the request is parked).
- The next attempt asks for the open choices only, under the seed and the numbers of the first, and has a number that
  no attempt had before.
"""

from __future__ import annotations

from msgspec import structs

from xllm.errors import XllmError
from xllm.rpc.failure import to_output_error
from xllm.types.ids import InstanceId
from xllm.types.output import FinishReason, RequestOutput
from xllm.types.request import Request, Route


class LiveRequest:
    """See the module; times are the clock's, in seconds."""

    __slots__ = (
        "begun_s",
        "due_s",
        "ending",
        "first",
        "instance",
        "is_accepted",
        "killers",
        "last_attempt",
        "num_cached",
        "num_losses",
        "num_offers",
        "num_waits",
        "offer",
        "open_choices",
        "output_ids",
        "parked_s",
        "reason",
        "refused_by",
        "request",
        "retry_s",
    )

    def __init__(self, request: Request, *, begun_s: float, due_s: float) -> None:
        num_choices = request.sampling.n
        self.first = request
        """As the edge gave it."""
        self.request = request
        """The attempt that is listened to, as it was sent."""
        self.offer: Request | None = None
        """The attempt after it, as another instance was asked to run it while this one goes on."""
        self.num_offers = 0
        self.last_attempt = request.attempt
        """The highest number of an attempt that was sent."""
        self.instance: InstanceId = request.route.prefill
        self.output_ids: list[list[int]] = [[] for _ in range(num_choices)]
        self.num_cached: list[int | None] = [None] * num_choices
        """Per choice, the cached prompt tokens its first output told."""
        self.open_choices = set(request.open_choices)
        self.ending: dict[int, FinishReason] = {}
        """Choices whose end was asked for, and how they end if the engine cannot say it any more."""
        self.begun_s = begun_s
        self.due_s = due_s
        """When the request is over whatever happens."""
        self.is_accepted = False
        """Whether some engine has queued it: from then on its reader gets the end, not its submitter."""
        self.num_losses = 0
        """Attempts that ended without an end."""
        self.killers: list[InstanceId] = []
        """Instances that died while they had it."""
        self.refused_by: set[InstanceId] = set()
        """Instances that had no room for it since it last ran."""
        self.num_waits = 0
        """Vain tries to place it since it last ran."""
        self.parked_s = 0.0
        self.retry_s = 0.0
        self.reason: XllmError | None = None
        """Why it is parked."""

    @property
    def num_delivered(self) -> int:
        """Tokens its reader has, over all choices."""
        return sum(map(len, self.output_ids))

    def is_offered(self, instance: InstanceId, attempt: int | None = None) -> bool:
        """Whether this instance was asked to go on with it (with this attempt)."""
        offer = self.offer
        if offer is None or offer.route.prefill != instance:
            return False
        return attempt is None or offer.attempt == attempt

    def next_request(self, route: Route, now_s: float, deadline_in_s: float | None) -> Request:
        """The next attempt: what the first asked for, less what has been delivered."""
        resumed = any(self.output_ids)
        ended = tuple(c for c in range(self.first.sampling.n) if c not in self.open_choices)
        ids = tuple(() if c in ended else tuple(ids) for c, ids in enumerate(self.output_ids))
        slo = self.first.slo
        if resumed:  # its first token is out: no budget for it is left to miss
            slo = structs.replace(slo, ttft_ms=None)
        return structs.replace(
            self.first,
            attempt=self.last_attempt + 1,
            route=route,
            resumed_output_ids=ids if resumed else (),
            ended_choices=ended,
            age_s=self.first.age_s + now_s - self.begun_s,
            deadline_in_s=deadline_in_s,
            slo=slo,
        )

    def is_gap(self, output: RequestOutput) -> bool:
        """Whether tokens before this output are missing."""
        return bool(output.token_ids) and output.first_token_index > len(self.output_ids[output.choice])

    def merge(self, output: RequestOutput) -> RequestOutput | None:
        """Cut repeated tokens and keep the books; None: it says nothing new."""
        mine = self.output_ids[output.choice]
        expected = len(mine)
        repeated = expected - output.first_token_index
        if output.token_ids and repeated > 0:
            kept = output.token_ids[repeated:]
            if not kept and output.finish_reason is None:
                return None
            logprobs = None if output.logprobs is None else output.logprobs[repeated:]
            output = structs.replace(output, first_token_index=expected, token_ids=kept, logprobs=logprobs)
        mine.extend(output.token_ids)
        if output.num_cached_tokens is not None:
            self.num_cached[output.choice] = output.num_cached_tokens
        if output.finish_reason is not None:
            self.open_choices.discard(output.choice)
            told = self.num_cached[output.choice]
            if output.usage is not None and told is not None and output.attempt != self.first.attempt:
                output = structs.replace(output, usage=structs.replace(output.usage, num_cached_tokens=told))
        return output

    def end(self, choice: int, reason: FinishReason, error: XllmError | None) -> RequestOutput:
        """Close a choice here, without its engine."""
        self.open_choices.discard(choice)
        # With its hint: what travels in an output has no other place for it.
        told = (
            None if error is None else structs.replace(to_output_error(error), message=error.public_message)
        )
        return RequestOutput(
            self.first.id,
            self.request.attempt,
            choice,
            len(self.output_ids[choice]),
            (),
            finish_reason=reason,
            error=told,
        )
