"""Host memory in one piece that costs nothing until it is touched."""

from __future__ import annotations

import mmap

import torch

HUGE_PAGE_BYTES = 2 * 1024 * 1024


def untouched_bytes(num_bytes: int) -> torch.Tensor:
    """Zeros, uint8 ``[num_bytes]``, from the kernel itself: a page exists once something has touched it.

    An allocator would do the same only while it has no freed memory to hand out, which it must clear. Begins at a huge
    page's boundary and is made of huge pages where the system has them.

    Raises:
        MemoryError: the system refuses that much.
    """
    # Keyword flags: an anonymous map of Python's is shared by default, and shared memory has other huge page rules.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, flags=flags)
    except (OSError, OverflowError) as exc:
        raise MemoryError(f"{num_bytes} bytes: {exc}") from exc
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages: the same memory in small ones
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    offset = -whole.data_ptr() % HUGE_PAGE_BYTES
    return whole[offset : offset + num_bytes]
