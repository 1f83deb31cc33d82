"""Python's cycle collector in processes that serve.

What a process makes while it starts lives as long as it does, yet every full collection would walk it again: tens of
milliseconds in which no token leaves, and while modules are imported time for nothing. Requests are freed by their
reference counts, so young objects may wait longer than Python lets them.
"""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 20_000
"""Containers allocated, less those freed, before the youngest are looked at; Python's own number is 700."""


def start_without_collecting() -> None:
    """First thing in a process that will serve."""
    gc.disable()


def collect_what_serving_makes() -> None:
    """Once the process is ready: what is there stays out of collections, what comes is collected."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    gc.enable()
