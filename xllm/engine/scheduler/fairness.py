"""FairOrder: every tenant gets its share of tokens (virtual token counter; Sheng et al., OSDI 2024).

Each tenant has a counter of the service it received: computed prompt tokens plus twice its output tokens (an output
token costs more than a prompt token), divided by its weight. Waiting requests of the tenant with the lowest counter go
first; among one tenant's requests another policy decides. A tenant that comes back after a pause is lifted to the
lowest counter among the active ones: credit cannot be saved up. Whoever runs keeps running: only the queue is fair,
nobody is preempted for fairness.

INVARIANTS
- Between two tenants with waiting requests the difference of weighted service stays below the largest single charge
  between two rankings on each side (one prompt, or the output of the running sequences while nothing is admitted).
- Counters of at most ``MAX_TENANTS`` tenants are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from xllm.base.tenant_counters import TenantCounters
from xllm.engine.scheduler.order import OrderPolicy
from xllm.engine.scheduler.sequence import Key, Sequence

RUNNING, QUEUED = 0, 1


class FairOrder:
    """See the module; ``inner`` orders the requests of one tenant."""

    def __init__(self, inner: OrderPolicy, weights: Mapping[str, float] | None = None) -> None:
        self._inner = inner
        self._counters = TenantCounters(weights)
        self._active: set[str] = set()

    def counter(self, tenant: str) -> float:
        """Weighted service a tenant has received (lifted where it paused)."""
        return self._counters.of(tenant)

    def key(self, seq: Sequence, now_s: float) -> Key:
        """Behind what its tenant got so far; exact from the next ranking on."""
        inner = self._inner.key(seq, now_s)
        if seq.num_preemptions:
            return (int(seq.request.offline), RUNNING, 0.0, *inner)
        return (int(seq.request.offline), QUEUED, self.counter(seq.request.tenant), *inner)

    def rank(self, waiting: Collection[Sequence], running: Collection[Sequence], now_s: float) -> bool:
        """Tags for everybody: a tenant's k-th request stands where its first k-1 will have brought the counter."""
        if not len(waiting):
            return False
        inner_key = self._inner_keys(waiting, running, now_s)
        self._lift({s.request.tenant for s in waiting}, {s.request.tenant for s in running})
        tags: dict[str, float] = {}
        for seq in sorted(waiting, key=lambda s: inner_key[s.id]):
            offline, key = int(seq.request.offline), inner_key[seq.id]
            if seq.num_preemptions:  # it has been charged: it goes on where it was
                seq.key = (offline, RUNNING, 0.0, *key)
                continue
            tenant = seq.request.tenant
            tag = tags.get(tenant)
            if tag is None:
                tag = self._counters.of(tenant)
            seq.key = (offline, QUEUED, tag, *key)
            tags[tenant] = tag + self._counters.cost(tenant, prompt_tokens=len(seq.token_ids))
        for seq in running:
            seq.key = (int(seq.request.offline), RUNNING, 0.0, *inner_key[seq.id])
        return True

    def _inner_keys(
        self, waiting: Collection[Sequence], running: Collection[Sequence], now_s: float
    ) -> dict[int, Key]:
        """The inner policy ranks under its own keys; ours are put back over them."""
        for seq in (*waiting, *running):
            seq.key = seq.key[3:]
        self._inner.rank(waiting, running, now_s)
        return {s.id: s.key for s in (*waiting, *running)}

    def _lift(self, waiting: set[str], running: set[str]) -> None:
        """Tenants that were away start at the lowest counter of those that were not."""
        present = waiting | running
        stayed = self._active & present
        if stayed:
            floor = min(self._counters.of(t) for t in stayed)
        else:
            floor = max((self._counters.of(t) for t in self._active), default=0.0)
        self._counters.lift(present - stayed, floor)
        self._active = present
        self._counters.forget_away(present)

    def ahead(
        self, seq: Sequence, others: Collection[Sequence], running: Collection[Sequence], now_s: float
    ) -> list[Sequence]:
        """Those with a smaller key: tenants that got less, and the own requests before it."""
        return [s for s in others if s.key < seq.key]

    def on_admit(self, seq: Sequence, num_cached: int) -> None:
        """Charge the prompt once; what was cached is free, what a preemption threw away is not charged again."""
        self._inner.on_admit(seq, num_cached)
        if not seq.num_preemptions:
            self._counters.charge(seq.request.tenant, prompt_tokens=max(0, len(seq.token_ids) - num_cached))

    def on_sample(self, seq: Sequence) -> None:
        """Charge an output token."""
        self._inner.on_sample(seq)
        self._counters.charge(seq.request.tenant, output_tokens=1)
