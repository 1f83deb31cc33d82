"""Which CPUs the calling thread, and threads it starts, may run on. Does nothing where there is no such call."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)


def set_affinity(cpus: Iterable[int]) -> None:
    """Confine the calling thread. A refusal (the CPUs were taken away meanwhile) is logged, not raised."""
    if not hasattr(os, "sched_setaffinity"):
        return
    wanted = set(cpus)
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as exc:
        _LOG.warning("a thread cannot be kept on CPUs %s: %s", sorted(wanted), exc)


def usable_cpus() -> frozenset[int]:
    """Where the calling thread may run; empty where nobody can tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


@contextmanager
def kept_affinity() -> Iterator[None]:
    """Whatever the block does to it, the calling thread's affinity is the same afterwards."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        if os.sched_getaffinity(0) != before:
            set_affinity(before)
