"""Buffers that are freed and allocated again cost no page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import ctypes, resource, sys
from xllm.base.malloc import keep_step_buffers
if sys.argv[1] == "kept" and not keep_step_buffers():
    sys.exit(7)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def touch():
    # A smaller one after it: the freed buffer is not the top of the heap.
    buffers = [libc.malloc(6 << 20), libc.malloc(70 << 20), libc.malloc(3 << 20)]
    for buffer in buffers:
        ctypes.memset(buffer, 1, 3 << 20)
    for buffer in buffers:
        libc.free(buffer)

libc.mallopt(-3, 128 << 10) if sys.argv[1] == "usual" else None  # it learns; a step's first buffers are not learned
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(kind: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, kind], capture_output=True, text=True, timeout=200, check=False
    )
    if done.returncode == 7:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_buffers_are_kept() -> None:
    kept, usual = _faults("kept"), _faults("usual")
    if usual == 0:
        pytest.skip("this system counts no page faults")
    assert kept < usual / 10, (kept, usual)  # a hundredth, where nothing else moves the process's pages
