"""AdmissionPolicy: decides whether the first waiting sequence may start now.

A round is one scheduling step with somebody waiting. Policies never see true output lengths: only what a request may
use at most and what finished ones did use.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from xllm.engine.cache.kv_cache import KVCache, PrefixHit
from xllm.engine.scheduler.sequence import Sequence


class AdmissionPolicy(Protocol):
    """See the module; the scheduler calls begin_round, then may_admit / on_admit per candidate in queue order."""

    def begin_round(self, running: Seq[Sequence], cache: KVCache) -> None:
        """A step is being planned; ``running`` are placed already."""
        ...

    def may_admit(self, seq: Sequence, hit: PrefixHit) -> bool:
        """Whether ``seq``, of which ``hit`` is cached, may enter in this round."""
        ...

    def on_admit(self, seq: Sequence) -> None:
        """It entered; later candidates of the round count it."""
        ...

    def on_finish(self, seq: Sequence) -> None:
        """A sequence ended by itself (stop or length): its output length is known now."""
        ...

    def predicted_peak_blocks(self, running: Seq[Sequence], cache: KVCache) -> int | None:
        """Blocks the running set will need at most, where the policy predicts; a load signal for routers."""
        ...
