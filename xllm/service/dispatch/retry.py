"""How often, how fast and for how long a request is tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryLimits:
    """Bounds of failover; the request's own deadline holds besides."""

    max_losses: int = 8
    """Lost attempts after which a request ends with the error of the last one."""
    max_deaths: int = 2
    """A request that was on this many instances when they died is refused: it may be what kills them."""
    max_wait_s: float = 10.0
    """How long a request waits for an instance that can take it."""
    first_pause_s: float = 0.05
    longest_pause_s: float = 1.0

    def pause_s(self, num_waits: int) -> float:
        """Before the next try, after ``num_waits`` (>= 1) vain ones."""
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(num_waits - 1, 30))
