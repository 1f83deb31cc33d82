"""Who gives way when blocks run out. Preemption is by recompute; committed blocks stay cached, so it costs little.

Victims come in this order: waiting forks that hold blocks (they lose a tail copy), offline before online, the
policy's last before its first; a sequence preempted ``max_preemptions`` times is spared while another can be found.
"""

from __future__ import annotations

from collections.abc import Iterable

from xllm.engine.scheduler.sequence import Sequence


def choose_victim(
    running: Iterable[Sequence], *, for_seq: Sequence, step: int, max_preemptions: int
) -> Sequence | None:
    """The sequence to preempt for ``for_seq``: never one scheduled in this ``step`` or ordered before ``for_seq``.

    None: nobody but ``for_seq`` itself is left to give way.
    """
    candidates = [s for s in running if s.scheduled_step != step and s.key > for_seq.key]
    if not candidates:
        return None
    return max(candidates, key=lambda s: (s.num_preemptions < max_preemptions, s.key))
