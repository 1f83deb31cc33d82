"""Election: at most one holder of a duty, by compare-and-set on a key under a lease.

A candidate that wins owns the key's revision, its *term*: terms grow, so whoever acts for the duty passes its term
along, and the other side refuses an older one (a fencing token).

INVARIANTS
- A holder counts its time from before it asked for the renewal, by its own clock, and ends ``MARGIN`` of the lease's
  time before the registry would: two candidates never both believe that they hold the duty, unless a clock runs
  more than that share faster than the other.
- When the registry is away the holder steps down in time, and nobody holds the duty: it pauses, it does not fork.
- ``on_change`` is called once per gain and once per loss, in turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from xllm.base.clock import Clock
from xllm.errors import LeaseExpired, RegistryError
from xllm.registry.store import Store
from xllm.types.store import Lease, StoreItem

log = logging.getLogger(__name__)

MARGIN = 0.2
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class Tenure:
    """What a candidate knows of its own term: a state machine over renewals and a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s = 0.0
        self.term: int | None = None
        """The term as won; see ``is_held`` for whether it still runs."""

    @property
    def is_held(self) -> bool:
        """Whether the duty may be carried out now."""
        return self.term is not None and self._clock.now() < self._until_s

    def on_won(self, term: int, asked_s: float, ttl_s: float) -> None:
        """The key was written; ``asked_s`` is when the lease was last asked for."""
        self.term = term
        self.on_renewed(asked_s, ttl_s)

    def on_renewed(self, asked_s: float, ttl_s: float) -> None:
        """The registry renewed the lease some time after ``asked_s``."""
        self._until_s = asked_s + ttl_s * (1 - MARGIN)

    def on_lost(self) -> None:
        """The key or the lease is gone, or the duty was given back."""
        self.term = None


class Election:
    """Campaigns for one duty as long as it runs. ``start`` once, ``close`` at the end, which gives the duty back."""

    def __init__(
        self,
        store: Store,
        key: str,
        candidate: str,
        *,
        ttl_s: float,
        clock: Clock,
        on_change: Callable[[bool], None] = lambda is_leader: None,
    ) -> None:
        self._store = store
        self._key = key
        self._value = candidate.encode()
        self._ttl_s = ttl_s
        self._clock = clock
        self._on_change = on_change
        self._tenure = Tenure(clock)
        self._lease: Lease | None = None
        self._was_leader = False
        self._task: asyncio.Task[None] | None = None
        self._watchdog: asyncio.TimerHandle | None = None

    @property
    def is_leader(self) -> bool:
        """Whether the duty is ours now; ask right before each act."""
        return self._tenure.is_held

    @property
    def term(self) -> int | None:
        """The fencing token while the duty is ours."""
        return self._tenure.term if self._tenure.is_held else None

    def start(self) -> None:
        """Begin to campaign; the registry need not be there yet."""
        self._task = asyncio.create_task(self._run())
        self._look()

    async def close(self) -> None:
        """Stop, and give the duty back so that another need not wait for the lease; bounded by the store."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._step_down()
        if self._lease is not None:
            try:
                await self._store.revoke_lease(self._lease.id)
            except RegistryError as exc:
                log.warning("election %s: the lease ends by itself: %s", self._key, exc.message)

    # -- private --

    async def _run(self) -> None:
        pause_s, told = _FIRST_PAUSE_S, ""
        while True:
            try:
                if await self._try_win():
                    pause_s, told = _FIRST_PAUSE_S, ""
                    await self._hold()
                elif await self._await_vacancy():
                    pause_s, told = _FIRST_PAUSE_S, ""
                else:  # nobody holds it and we did not get it: another was faster, or the registry lies
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            except RegistryError as exc:
                if isinstance(exc, LeaseExpired):
                    self._lease = None
                    self._step_down()
                elif exc.message != told:
                    told = exc.message
                    log.warning("election %s: %s", self._key, told)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _try_win(self) -> bool:
        asked_s = self._clock.now()
        if self._lease is None:
            self._lease = await self._store.grant_lease(self._ttl_s)
        else:
            self._lease = await self._store.keep_alive(self._lease.id)
        found = await self._find()
        if found is not None and found.lease == self._lease.id:  # won before, and the answer was lost
            self._tenure.on_won(found.revision, asked_s, self._granted_s(self._lease))
            self._look()
            return True
        if found is not None:
            return False
        term = await self._store.try_set(self._key, self._value, expected_revision=0, lease=self._lease.id)
        if term is None:
            return False
        self._tenure.on_won(term, asked_s, self._granted_s(self._lease))
        self._look()
        return True

    async def _hold(self) -> None:
        """Renew until the key is not ours any more."""
        while self._lease is not None:
            await asyncio.sleep(self._ttl_s / 4)
            asked_s = self._clock.now()
            lease = await self._store.keep_alive(self._lease.id)
            found = await self._find()
            if found is None or found.revision != self._tenure.term:
                self._step_down()
                return
            self._tenure.on_renewed(asked_s, self._granted_s(lease))
            self._look()

    def _granted_s(self, lease: Lease) -> float:
        """What a lease is trusted for: never more than was asked, whatever the registry says."""
        return min(lease.ttl_s, self._ttl_s)

    async def _await_vacancy(self) -> bool:
        """Until the key goes, or half a lease has passed: the own lease must live meanwhile. False: nobody held it."""
        snapshot = await self._store.get_prefix(self._key)
        if not any(item.key == self._key for item in snapshot.items):
            return False
        try:
            async with asyncio.timeout(self._ttl_s / 2):
                async with aclosing(self._store.watch(self._key, snapshot.revision)) as batches:
                    async for batch in batches:
                        if any(event.kind == "delete" and event.item.key == self._key for event in batch):
                            return True
        except TimeoutError:
            pass
        return True

    async def _find(self) -> StoreItem | None:
        items = (await self._store.get_prefix(self._key)).items
        return next((item for item in items if item.key == self._key), None)

    def _step_down(self) -> None:
        self._tenure.on_lost()
        self._look()

    def _look(self) -> None:
        """Tell gains and losses, losses by time included."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        is_leader = self._tenure.is_held
        if is_leader != self._was_leader:
            self._was_leader = is_leader
            log.info("election %s: %s", self._key, f"won, term {self._tenure.term}" if is_leader else "lost")
            self._on_change(is_leader)
        if self._task is not None and is_leader:
            self._watchdog = asyncio.get_running_loop().call_later(self._ttl_s / 20, self._look)
