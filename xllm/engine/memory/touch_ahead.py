"""TouchAhead: memory for KV that nobody has used yet is brought in while nothing runs.

The system gives a page at its first touch: it is zeroed then, and a virtual machine may have to wait for its host. With
pages of 2 MiB in every layer's tensor, one step in 64 blocks pays for all of them at once. So an idle engine touches
some memory beyond what has been in use; the rest of the pool stays untouched and costs nothing.

INVARIANTS
- Contents never change: the system is asked for the pages, nothing is written.
- One call takes one piece, so that a step that arrives meanwhile waits a few milliseconds.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence

import torch

from xllm.engine.platform.host_memory import HUGE_PAGE_BYTES

_LOG = logging.getLogger(__name__)
_PAGE_BYTES = 4096
_MADV_POPULATE_WRITE = 23  # Linux 5.14; the constant is not in mmap of Python 3.11


class TouchAhead:
    """Over the tensors of a pool, dense and as long as the pool has blocks. One thread calls."""

    def __init__(self, tensors: Sequence[torch.Tensor], num_ahead: int) -> None:
        """``num_ahead``: blocks to touch beyond the highest one in use; 0: none."""
        self.num_touched_bytes = 0
        self._tensors = tuple(tensors)
        self._num_blocks = len(tensors[0])
        block_bytes = [t.nbytes // len(t) for t in tensors]
        self._num_ahead = num_ahead
        self._num_at_once = max(1, HUGE_PAGE_BYTES // max(block_bytes))
        self._num_used = 0
        self._begin = 0  # of the blocks in work: those before are there in every tensor
        self._tensor = 0
        self._libc = _load_libc() if self._num_ahead else None

    @property
    def is_on(self) -> bool:
        """Whether it wants to know what is in use."""
        return self._libc is not None

    def saw(self, block: int) -> None:
        """A block is in use."""
        self._num_used = max(self._num_used, block + 1)

    def touch(self) -> bool:
        """One piece; False when there is nothing to do until more is in use."""
        if self._libc is None:
            return False
        if self._num_used > self._begin + self._num_at_once:  # a burst went ahead of us
            self._begin, self._tensor = self._num_used // self._num_at_once * self._num_at_once, 0
        if self._begin >= min(self._num_blocks, self._num_used + self._num_ahead):
            return False
        tensor = self._tensors[self._tensor]
        part = tensor[self._begin : self._begin + self._num_at_once]
        first = part.data_ptr() // _PAGE_BYTES * _PAGE_BYTES
        num_bytes = part.data_ptr() + part.nbytes - first
        address = ctypes.c_void_p(first)
        if self._libc.madvise(address, ctypes.c_size_t(num_bytes), _MADV_POPULATE_WRITE) != 0:
            _LOG.info("KV memory is not touched ahead: error %d", ctypes.get_errno())
            self._libc = None
            return False
        self.num_touched_bytes += part.nbytes
        self._tensor = (self._tensor + 1) % len(self._tensors)
        if self._tensor == 0:
            self._begin += self._num_at_once
        return True


def _load_libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.restype = ctypes.c_int
    except (OSError, AttributeError, TypeError):  # not a POSIX system
        return None
    return libc
