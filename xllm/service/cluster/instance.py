"""Instance: what the service knows about one engine, as a state machine over its lease, connection and heartbeats.

    joining --connected--> ready <--> degraded   (work in hand does not advance)
                             ^  \\
         heartbeat or        |   +--> suspect    (no heartbeat for a while)
         reconnected         |          |
    lost <-- connection gone +          +--> lost  (silent for long, or silent and its lease has ended)
                             |
                             +--> draining       (the engine says so)

Three witnesses, none trusted alone: the lease (the registry may be away or restarted), the connection (a frozen
process keeps it open), the progress counter (it stands still while the machine is busy, too).

INVARIANTS
- Liveness is progress: an engine whose port answers but whose step and layer counters stand still is not healthy.
- A lease that ended proves nothing while heartbeats come; a lease that lives proves nothing while none come.
- Its picture changes only by events, which it adds to ``changed``, and by time, at ``steady_until_s``.
- Only durations come from the engine; they are aged with this process's clock, and time in which this process itself
  stood still is not held against an engine (``forgive``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xllm.base.clock import Clock
from xllm.service.cluster.view import InstanceView
from xllm.types.ids import InstanceId
from xllm.types.instance import HealthReport, InstanceInfo, InstanceState, LoadReport
from xllm.types.wire import LoadReply

_PREFILL_MEMORY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long an instance may be silent."""

    suspect_after_s: float = 2.5
    """Then it gets no new requests while there is a better one."""
    lost_after_s: float = 10.0
    """Then it is given up."""
    forget_after_s: float = 60.0
    """Lost and without a lease for this long, it is forgotten."""


class Instance:
    """One engine instance."""

    def __init__(
        self,
        info: InstanceInfo,
        clock: Clock,
        stall_timeout_s: float,
        patience: Patience | None = None,
        changed: set[InstanceId] | None = None,
    ) -> None:
        """``changed``: gets the instance's id with every event."""
        self._id = info.id
        self._changed = set() if changed is None else changed
        self._changed.add(info.id)
        self.info = info
        self.load = LoadReport()
        self.num_inflight = 0
        self.num_routed = 0
        self.num_pending_tokens = 0
        self.num_pending_prompt_tokens = 0
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._health: HealthReport | None = None
        self._heard_s = clock.now()
        self._lost: str | None = "not connected yet"
        self._lost_s = clock.now()
        self._patience = patience or Patience()
        self._is_joining = True
        self._has_lease = True
        self._routed_at_beat = 0
        self._num_foreign = 0
        self._prefill_share = 0.0

    def on_connected(self, info: InstanceInfo) -> None:
        """A connection is up; ``info`` may be of a new incarnation."""
        self._changed.add(self._id)
        if info.incarnation != self.info.incarnation:
            self.load, self._health = LoadReport(), None
            self._num_foreign = 0
            self._prefill_share = 0.0
        self.info = info
        self._lost = None
        self._is_joining = False
        self._heard_s = self._clock.now()

    def on_heartbeat(self, reply: LoadReply) -> None:
        """The engine told its load and health."""
        self._changed.add(self._id)
        self._watch_prefill(reply.load)
        self.load, self._health = reply.load, reply.health
        self._heard_s = self._clock.now()
        self._routed_at_beat = self.num_routed
        self._num_foreign = max(0, reply.load.num_running + reply.load.num_waiting - self.num_inflight)

    def on_lost(self, reason: str) -> bool:
        """The connection is gone, or could not be made; False: for the same reason as last time."""
        self._changed.add(self._id)
        is_news = reason != self._lost
        if self._lost is None:
            self._lost_s = self._clock.now()
        self._lost = reason
        self._is_joining = False
        return is_news

    def on_routed(self) -> None:
        """This service sends a request there."""
        self._changed.add(self._id)
        self.num_routed += 1

    def on_counted(
        self, *, num_inflight: int, num_pending_tokens: int, num_pending_prompt_tokens: int
    ) -> None:
        """What this service has there now; see InstanceView."""
        self._changed.add(self._id)
        self.num_inflight = num_inflight
        self.num_pending_tokens = num_pending_tokens
        self.num_pending_prompt_tokens = num_pending_prompt_tokens

    def catch_up(self, num_routed: int) -> None:
        """Count as many requests as the others have had: who was away is not owed those it missed."""
        self._changed.add(self._id)
        missed = num_routed - self.num_routed
        if missed > 0:
            self.num_routed += missed
            self._routed_at_beat += missed

    def on_lease(self, is_held: bool) -> None:
        """Its lease in the registry ended, or is back."""
        self._changed.add(self._id)
        self._has_lease = is_held

    def forgive(self, excess_s: float) -> None:
        """This process stood still for ``excess_s``: what the engine sent meanwhile has not been read yet."""
        self._changed.add(self._id)
        self._heard_s = min(self._heard_s + excess_s, self._clock.now())

    @property
    def is_given_up(self) -> bool:
        """Its connection is open but nothing can be expected of it: time to cut it."""
        return self._lost is None and self._is_too_silent()

    @property
    def is_forgettable(self) -> bool:
        """Neither lease nor connection for so long that it will not come back under this incarnation."""
        gone_s = self._clock.now() - self._lost_s
        return self._lost is not None and not self._has_lease and gone_s >= self._patience.forget_after_s

    @property
    def state(self) -> InstanceState:
        """Judged now."""
        return self._judge()[0]

    @property
    def message(self) -> str:
        """Why it is in that state."""
        return self._judge()[1]

    @property
    def is_healthy(self) -> bool:
        """Work advances, or there is none."""
        return self._judge()[0] in ("ready", "draining")

    @property
    def health(self) -> HealthReport:
        """Its last report with the state as judged here and the stall aged to now."""
        state, message = self._judge()
        last = self._health
        if last is None:
            return HealthReport(
                state=state, step=0, layers_done=0, num_unfinished=0, idle_s=0.0, message=message
            )
        return HealthReport(
            state=state,
            step=last.step,
            layers_done=last.layers_done,
            num_unfinished=last.num_unfinished,
            idle_s=self._stalled_s(last),
            message=message or last.message,
        )

    @property
    def steady_until_s(self) -> float:
        """Until when the state holds if nothing happens."""
        if self._lost is not None:
            return math.inf
        now_s, patience, last = self._clock.now(), self._patience, self._health
        turns = [self._heard_s + patience.suspect_after_s, self._heard_s + patience.lost_after_s]
        if last is not None and last.num_unfinished:
            turns.append(self._heard_s + self._stall_timeout_s - last.idle_s)
        return min((turn_s for turn_s in turns if turn_s >= now_s), default=math.inf)

    def view(self) -> InstanceView:
        """An immutable picture."""
        return InstanceView(
            info=self.info,
            state=self.state,
            load=self.load,
            num_inflight=self.num_inflight,
            num_routed=self.num_routed,
            num_unreported=self.num_routed - self._routed_at_beat,
            num_pending_tokens=self.num_pending_tokens,
            num_pending_prompt_tokens=self.num_pending_prompt_tokens,
            num_foreign=self._num_foreign,
            prefill_share=self._prefill_share,
        )

    def _watch_prefill(self, load: LoadReport) -> None:
        """How much of the time since the last report went into prompts, smoothed over some seconds."""
        past_s = self._clock.now() - self._heard_s
        if load.step_costs is None or past_s <= 0 or self._health is None:
            return
        num_computed = load.prefix_query_tokens - load.prefix_hit_tokens
        num_computed -= self.load.prefix_query_tokens - self.load.prefix_hit_tokens
        share = min(1.0, max(0, num_computed) * load.step_costs.token_s / past_s)
        weight = 1.0 - math.exp(-past_s / _PREFILL_MEMORY_S)
        self._prefill_share += weight * (share - self._prefill_share)

    def _judge(self) -> tuple[InstanceState, str]:
        if self._lost is not None:
            state: InstanceState = "joining" if self._is_joining else "lost"
            return state, f"instance {self.info.id}: {self._lost}"
        silent_s = self._clock.now() - self._heard_s
        if self._is_too_silent():
            lease = "" if self._has_lease else " and its lease has ended"
            return "lost", f"instance {self.info.id} has not been heard for {silent_s:.1f} s{lease}"
        if silent_s >= self._patience.suspect_after_s:
            return "suspect", f"instance {self.info.id} has not been heard for {silent_s:.1f} s"
        last = self._health
        if last is None:
            return "ready", ""
        if last.state not in ("ready", "draining"):
            return last.state, f"instance {self.info.id} is {last.state}: {last.message}"
        stalled_s = self._stalled_s(last)
        if stalled_s >= self._stall_timeout_s:
            return "degraded", f"instance {self.info.id}: no step or layer has advanced for {stalled_s:.1f} s"
        return last.state, ""

    def _is_too_silent(self) -> bool:
        silent_s = self._clock.now() - self._heard_s
        is_suspect = silent_s >= self._patience.suspect_after_s
        return silent_s >= self._patience.lost_after_s or (is_suspect and not self._has_lease)

    def _stalled_s(self, last: HealthReport) -> float:
        """The engine's own measure, aged: until the next heartbeat we assume that nothing has advanced."""
        if last.num_unfinished == 0:
            return 0.0
        return last.idle_s + self._clock.now() - self._heard_s
