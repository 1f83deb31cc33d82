"""What OpenMP reads from the environment when torch loads it; must be said before, in the engine process only.

By default a worker thread of GNU OpenMP spins for milliseconds at every barrier and after every forward. On cores that
other work wants too (the event loop, the edge, a neighbour) it burns the very time that the thread it waits for would
need: forwards of a millisecond took hundreds (``benchmarks/thread_count.py``). A short spin covers the microseconds
between two operations and sleeps through everything longer.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

SPIN_COUNT = "2000"
"""Rounds of a spinning wait, tens of microseconds in all."""
SPIN_MS = "1"
"""The same for Intel's OpenMP, where somebody has loaded that one; it knows milliseconds only."""
_COUNTING = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_PLACING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def prepare_openmp(
    num_threads: int, environ: MutableMapping[str, str], *, cpus: Sequence[int] = ()
) -> tuple[str, ...]:
    """Set threads, spinning and places, unless the environment has said something about them.

    Args:
        cpus: one per thread, each pinned to its own; empty: not pinned.

    Returns:
        Variables that the environment has said itself.
    """
    said = tuple(name for name in (*_COUNTING, *_WAITING, *_PLACING) if name in environ)
    environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    environ.setdefault("MKL_NUM_THREADS", environ["OMP_NUM_THREADS"])
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        environ.setdefault("KMP_BLOCKTIME", SPIN_MS)
    if cpus and not any(name in environ for name in _PLACING):
        environ["OMP_PROC_BIND"] = "true"
        environ["OMP_PLACES"] = ",".join(f"{{{cpu}}}" for cpu in cpus)
    return said
