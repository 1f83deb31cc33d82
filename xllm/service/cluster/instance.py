"""Instance: what the service knows about one engine, as a state machine over its heartbeats.

    connected ----------------> ready <--> degraded   (work in hand does not advance)
                                  ^  \\
              heartbeat or        |   +--> suspect     (no heartbeat for a while)
              reconnected         |
    lost <-- connection gone -----+--> draining        (the engine says so)

INVARIANTS
- Liveness is progress: an engine whose port answers but whose step and layer counters stand still is not healthy.
- Only durations come from the engine; they are aged with this process's clock.
"""

from __future__ import annotations

from xllm.base.clock import Clock
from xllm.service.cluster.view import InstanceView
from xllm.types.instance import HealthReport, InstanceInfo, InstanceState, LoadReport
from xllm.types.wire import LoadReply


class Instance:
    """One engine instance."""

    def __init__(self, info: InstanceInfo, clock: Clock, stall_timeout_s: float) -> None:
        self.info = info
        self.load = LoadReport()
        self.num_inflight = 0
        self.num_routed = 0
        self._clock = clock
        self._stall_timeout_s = stall_timeout_s
        self._health: HealthReport | None = None
        self._heard_s = clock.now()
        self._lost: str | None = "not connected yet"

    def on_connected(self, info: InstanceInfo) -> None:
        """A connection is up; ``info`` may be of a new incarnation."""
        if info.incarnation != self.info.incarnation:
            self.load, self._health = LoadReport(), None
        self.info = info
        self._lost = None
        self._heard_s = self._clock.now()

    def on_heartbeat(self, reply: LoadReply) -> None:
        """The engine told its load and health."""
        self.load, self._health = reply.load, reply.health
        self._heard_s = self._clock.now()

    def on_lost(self, reason: str) -> None:
        """The connection is gone."""
        self._lost = reason

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

    def view(self) -> InstanceView:
        """An immutable picture."""
        return InstanceView(
            info=self.info,
            state=self.state,
            load=self.load,
            num_inflight=self.num_inflight,
            num_routed=self.num_routed,
        )

    def _judge(self) -> tuple[InstanceState, str]:
        if self._lost is not None:
            return "lost", f"instance {self.info.id}: {self._lost}"
        silent_s = self._clock.now() - self._heard_s
        if silent_s >= self._stall_timeout_s:
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

    def _stalled_s(self, last: HealthReport) -> float:
        """The engine's own measure, aged: until the next heartbeat we assume that nothing has advanced."""
        if last.num_unfinished == 0:
            return 0.0
        return last.idle_s + self._clock.now() - self._heard_s
