"""How the C library's allocator treats the buffers of a step.

A buffer of some hundred kilobytes is fetched from the kernel when it is allocated and given back when it is freed, so
each step would have the kernel fill the same pages with zeros again: on a small model that was an eighth of an engine's
time. Kept in the heap they are ready for the next step. What lives as long as the process, weights and KV, does not
come from this allocator.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
MAX_KEPT_BYTES = 256 << 20
"""Free memory at the heap's top beyond this goes back to the kernel."""


def keep_step_buffers() -> bool:
    """Keep freed buffers for reuse; before other threads exist. False: not glibc, nothing changed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One heap: the executor's thread would otherwise have an arena of its own, whose heaps are smaller than a buffer.
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, MAX_KEPT_BYTES), (_ARENA_MAX, 1))
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted])
