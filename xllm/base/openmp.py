"""What OpenMP reads from the environment when torch loads it; must be said before, in the engine process only.

By default a worker thread of GNU OpenMP spins for milliseconds at every barrier and after every forward. On cores that
other work wants too (the event loop, the edge, a neighbour) it burns the very time that the thread it waits for would
need: forwards of a millisecond took hundreds (``benchmarks/thread_count.py``). A short spin covers the microseconds
between two operations and sleeps through everything longer.
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "2000"
"""Rounds of a spinning wait, tens of microseconds in all."""


def prepare_openmp(num_threads: int, environ: MutableMapping[str, str]) -> None:
    """Set threads and spinning, unless the environment has said something about them."""
    environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
