"""What is alive when serving begins is not walked again; new cycles are collected, without being told to."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import gc, weakref
from xllm.base.garbage import YOUNG_OBJECTS, collect_what_serving_makes, start_without_collecting

class Node:
    pass

start_without_collecting()
assert not gc.isenabled()
kept = [Node() for _ in range(1000)]
collect_what_serving_makes()
assert gc.get_freeze_count() >= 1000
assert not any(isinstance(x, Node) for x in gc.get_objects()), "the living are left out"
node = Node()
node.me = node
gone = weakref.ref(node)
del node
young = [[] for _ in range(YOUNG_OBJECTS - 5000)]
assert gone() is not None, "not yet"
more = [[] for _ in range(10_000)]
assert gone() is None, "a new cycle is collected"
"""


def test_the_living_are_left_out_and_new_cycles_are_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
