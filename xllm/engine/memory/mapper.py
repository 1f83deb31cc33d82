"""Virtual memory of the host: one reserved stretch of addresses, and physical pages of one anonymous file.

    |<- range 0: pages_per_range pages ->|<- range 1 ->| ... |<- every physical page, in order ->|
      reserved; backed where mapped                             always backed

Reserving costs nothing but addresses. A mapping replaces what is at its place in one system call, so taking over a
place needs no unmap. A physical page may be mapped into many places; its bytes are the same in all of them.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from typing import Protocol

from xllm.errors import CapacityError
from xllm.types.pages import PageGeometry

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MAP_POPULATE = 0x8000
_MAP_FIXED_NOREPLACE = 0x100000
_PROT_NONE = 0
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_RESERVED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


class Mapper(Protocol):
    """Maps pages into places; calls for different places may come from different threads."""

    def map(self, range_id: int, offset: int, page: int) -> None:
        """Have the page at the place instead of what is there. OSError: it is not, nor is what was there before."""

    def unmap(self, range_id: int, offset: int) -> None:
        """Have nothing at the place. OSError: what was there may still be."""


class MemfdMapper:
    """See the module. Linux only; the addresses are given back when the last user of ``buffer`` is gone."""

    def __init__(self, geometry: PageGeometry, num_pages: int) -> None:
        """Reserve the ranges and create the pages.

        Raises:
            CapacityError: the system has not enough addresses or memory, or no anonymous files.
        """
        self._geometry = geometry
        self._libc = _load_libc()
        self._lost: set[int] = set()
        pages_bytes = num_pages * geometry.page_bytes
        self.num_bytes = geometry.num_ranges * geometry.range_bytes + pages_bytes
        try:
            self._file = os.memfd_create("xllm-kv", os.MFD_CLOEXEC)
            os.ftruncate(self._file, pages_bytes)
            self.address = self._mmap(None, self.num_bytes, _PROT_NONE, _RESERVED, -1, 0)
            weakref.finalize(self, _give_back, self._libc, self.address, self.num_bytes, self._file)
            first = self.address + geometry.num_ranges * geometry.range_bytes
            self._mmap(first, pages_bytes, _READ_WRITE, mmap.MAP_SHARED | _MAP_FIXED, self._file, 0)
        except (OSError, AttributeError) as exc:
            size = f"{self.num_bytes / 2**30:.1f} GiB of addresses for {geometry.num_ranges} KV ranges"
            raise CapacityError(
                f"cannot reserve {size}: {exc}",
                status=503,
                hint="use --kv-layout paged, or fewer or shorter sequences; is virtual memory limited (ulimit -v)?",
            ) from exc

    @property
    def buffer(self) -> ctypes.Array[ctypes.c_char]:
        """All of it; touch only what is mapped. Keeps the mapper alive."""
        buffer = (ctypes.c_char * self.num_bytes).from_address(self.address)
        buffer.owner = self  # type: ignore[attr-defined]
        return buffer

    def map(self, range_id: int, offset: int, page: int) -> None:
        """One system call; the page table is filled at once, so that the step does not fault."""
        size, place = self._geometry.page_bytes, self._address(range_id, offset)
        if place in self._lost:
            raise OSError(errno.ENOMEM, "the place is not reserved any more")
        try:
            flags = mmap.MAP_SHARED | _MAP_FIXED | _MAP_POPULATE
            self._mmap(place, size, _READ_WRITE, flags, self._file, page * size)
        except OSError:
            self._reserve_again(place)
            raise

    def unmap(self, range_id: int, offset: int) -> None:
        """One system call."""
        flags = _RESERVED | _MAP_FIXED
        self._mmap(self._address(range_id, offset), self._geometry.page_bytes, _PROT_NONE, flags, -1, 0)

    def _reserve_again(self, place: int) -> None:
        """A failed mapping may leave a hole in the arena, where anybody's memory could land: close it, or never map
        there again."""
        try:
            flags = _RESERVED | _MAP_FIXED_NOREPLACE
            self._mmap(place, self._geometry.page_bytes, _PROT_NONE, flags, -1, 0)
        except OSError as exc:
            if exc.errno != errno.EEXIST:  # EEXIST: nothing was lost
                self._lost.add(place)

    def _address(self, range_id: int, offset: int) -> int:
        geometry = self._geometry
        assert 0 <= range_id < geometry.num_ranges and 0 <= offset < geometry.pages_per_range, (
            range_id,
            offset,
        )
        return self.address + range_id * geometry.range_bytes + offset * geometry.page_bytes

    def _mmap(
        self, address: int | None, size: int, protection: int, flags: int, file: int, offset: int
    ) -> int:
        found = self._libc.mmap(address, size, protection, flags, file, offset)
        if found is None or found == ctypes.c_void_p(-1).value:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return int(found)


def _load_libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _give_back(libc: ctypes.CDLL, address: int, size: int, file: int) -> None:
    libc.munmap(address, size)
    os.close(file)
