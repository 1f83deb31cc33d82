"""OverloadGate: how much this replica holds at once, in all, per tenant and of offline work.

A request beyond a bound is refused at once with 429 and a Retry-After from the predicted wait; it costs nothing.
Offline work has the smaller bound, so under overload it is refused (and waits at its sender) before any online request.
A tenant that has something open may have at most ``OPEN_PER_FREE`` times what it leaves free (dynamic thresholds;
Choudhury and Hahne, 1998): alone 7/8 of the whole, and less the more others have. So there is room for a newcomer.
What was accepted is never dropped for it; a resumed request does not pass here again.

INVARIANT: what is counted is what has entered and not left; a refused request leaves no trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from xllm.errors import CapacityError
from xllm.service.cluster.view import InstanceView
from xllm.service.policy.load import TOKENS_PER_S
from xllm.types.ids import RequestId
from xllm.types.request import Request

LONGEST_RETRY_S = 120.0
OPEN_PER_FREE = 7
"""What runs cannot be thrown out for another tenant, so one alone may not have it all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OverloadLimits:
    """Bounds in choices (a request with n = 3 counts three times); 0: none."""

    max_open: int = 0
    max_open_per_tenant: int = 0
    offline_share: float = 0.5
    """Offline work may take this share of ``max_open``, counted over everything that is open."""


class OverloadGate:
    """See the module."""

    def __init__(self, limits: OverloadLimits | None = None) -> None:
        self._limits = limits or OverloadLimits()
        self._entered: dict[RequestId, tuple[str, int]] = {}
        self._by_tenant: Counter[str] = Counter()
        self.num_open = 0
        """Choices that have entered and not left."""
        self.num_refused = 0

    def check(self, request: Request, instances: Sequence[InstanceView]) -> None:
        """Raise CapacityError (429) where the request would pass a bound."""
        limits, num_choices = self._limits, request.sampling.n
        max_open = limits.max_open
        if request.offline and max_open:
            max_open = max(1, int(max_open * limits.offline_share))
        if 0 < max_open < self.num_open + num_choices:
            kind = "offline work may take" if request.offline else "the limit is"
            self._refuse(f"{self.num_open} choices are open, {kind} {max_open}", instances)
        mine = self._by_tenant[request.tenant]
        free = max_open - self.num_open - num_choices + 1
        if mine and max_open and mine + num_choices > OPEN_PER_FREE * free:
            message = f"{mine} choices of this client are open; what is free is kept for others"
            self._refuse(f"{message}, the limit is {max_open}", instances)
        if request.tenant and 0 < limits.max_open_per_tenant < mine + num_choices:
            self._refuse(
                f"{mine} choices of this client are open, the limit is {limits.max_open_per_tenant}",
                instances,
            )

    def tenant_of(self, request_id: RequestId) -> str:
        """Whose it is; "" when it is not here."""
        return self._entered.get(request_id, ("", 0))[0]

    def enter(self, request: Request) -> None:
        """It is accepted; a second time (it waited, and goes on) changes nothing."""
        if request.id in self._entered:
            return
        num_choices = request.sampling.n
        self._entered[request.id] = (request.tenant, num_choices)
        self.num_open += num_choices
        self._by_tenant[request.tenant] += num_choices

    def leave(self, request_id: RequestId) -> None:
        """It is over; an unknown one is fine."""
        tenant, num_choices = self._entered.pop(request_id, ("", 0))
        self.num_open -= num_choices
        if num_choices:
            self._by_tenant[tenant] -= num_choices
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]

    def _refuse(self, message: str, instances: Sequence[InstanceView]) -> None:
        self.num_refused += 1
        raise CapacityError(
            message, retry_after_s=retry_after_s(instances), hint="send fewer requests at once"
        )


def retry_after_s(instances: Sequence[InstanceView]) -> float:
    """When the least loaded instance will have done what it has: 1 s to two minutes."""
    tokens = min((item.outstanding_tokens for item in instances), default=0.0)
    return min(LONGEST_RETRY_S, max(1.0, tokens / TOKENS_PER_S))
