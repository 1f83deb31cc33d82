"""TenantCounters: the weighted service each tenant has had (virtual token counter; Sheng et al., OSDI 2024).

An output token costs more than a prompt token; what a tenant gets is divided by its weight. Who goes first, and when a
tenant that was away is lifted, the engine's queue and the service's decide themselves.

INVARIANTS
- A counter never falls, except by being forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

PROMPT_COST, OUTPUT_COST = 1.0, 2.0
MAX_TENANTS = 4096


class TenantCounters:
    """See the module; a tenant nobody has heard of is at 0."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._counters: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._counters)

    def __contains__(self, tenant: object) -> bool:
        return tenant in self._counters

    def of(self, tenant: str) -> float:
        """Weighted service it has had, lifted where it was away."""
        return self._counters.get(tenant, 0.0)

    def cost(self, tenant: str, *, prompt_tokens: float = 0.0, output_tokens: float = 0.0) -> float:
        """By how much these tokens raise its counter."""
        tokens = PROMPT_COST * prompt_tokens + OUTPUT_COST * output_tokens
        return tokens / self._weights.get(tenant, 1.0)

    def charge(self, tenant: str, *, prompt_tokens: float = 0.0, output_tokens: float = 0.0) -> None:
        """It gets these tokens."""
        self._counters[tenant] = self.of(tenant) + self.cost(
            tenant, prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )

    def lift(self, tenants: Iterable[str], floor: float) -> None:
        """Credit cannot be saved up: these start no lower than ``floor``."""
        for tenant in tenants:
            self._counters[tenant] = max(self.of(tenant), floor)

    def forget_away(self, present: Collection[str], *, down_to: int = MAX_TENANTS) -> None:
        """Beyond ``MAX_TENANTS`` forget the lowest counters of those not ``present``, until ``down_to`` are left."""
        if len(self._counters) <= MAX_TENANTS:
            return
        away = sorted(self._counters.keys() - set(present), key=self._counters.__getitem__)
        for tenant in away[: len(self._counters) - down_to]:
            del self._counters[tenant]
