"""PackedCache: a model's arena as a file, so that a later start maps it in place of reading and packing.

Optional (``--packed-weights-cache DIR``). Weights are packed straight into the file, which stays mapped: its bytes are
page cache, one copy for all engines of the machine.

Layout: magic, length of the header, header (JSON), zeros up to a page, the arena.

INVARIANTS
- A file is used only if its key (checkpoint files by path, size and time of change; kernels; dtype; places) is the one
  of this start and the checksum over its arena is right. Otherwise the log says what is wrong and it is built again.
- Files appear by an atomic rename, complete. Nothing writes to an arena after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from ctypes import byref, c_uint64
from pathlib import Path
from typing import Any

import torch

from xllm.engine.models.arena import ALIGN, Place, arena_bytes
from xllm.engine.models.checkpoint import Checkpoint
from xllm.engine.platform.native import native_library, required_library

_LOG = logging.getLogger(__name__)
MAGIC = b"xllmpack"
FORMAT = 1
MAX_HEADER_BYTES = 1 << 20
_WRITE_BYTES = 1 << 23


class PackedCache:
    """The cached arena of one model; ``try_open`` it, or ``create`` memory for it and ``publish``."""

    def __init__(self, directory: Path, checkpoint: Checkpoint, places: Sequence[Place]) -> None:
        library = native_library()
        kernels = "reference" if library is None else library.path.name
        laid = [[p.name, list(p.shape), str(p.dtype), p.begin, p.is_packed] for p in places]
        files = [(str(path.resolve()), *_identity(path)) for path in checkpoint.files]
        self._num_bytes = arena_bytes(places)
        self._key = _digest([FORMAT, kernels, laid, files])
        # One file per model and dtype: a stale one is replaced, not kept beside.
        dtypes = sorted({str(p.dtype) for p in places})
        self._path = directory / f"{_digest([str(checkpoint.directory.resolve()), dtypes])[:24]}.packed"
        self._fresh: _Fresh | None = None

    @property
    def path(self) -> Path:
        """Of the file, whether it exists or not."""
        return self._path

    def try_open(self) -> torch.Tensor | None:
        """The arena, mapped and checked; None where there is none that can be used."""
        began_s = time.perf_counter()
        try:
            with self._path.open("rb") as file:
                header, begin = _read_header(file.read(MAX_HEADER_BYTES))
                if header.get("key") != self._key:
                    raise _Unusable("stale: the checkpoint or the kernels have changed")
                if os.fstat(file.fileno()).st_size != begin + self._num_bytes:
                    raise _Unusable("damaged: its length is wrong")
                # Private and writable: torch refuses read-only memory; nothing ever writes.
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (_Unusable, OSError) as exc:
            _LOG.warning("packed weights %s: %s; building them again", self._path, exc)
            return None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # large pages for what has to be read from the disk
                memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(mmap.MADV_WILLNEED)
        arena = torch.frombuffer(memory, dtype=torch.uint8, offset=begin)
        if _checksum(arena) != header.get("checksum"):
            _LOG.warning("packed weights %s: damaged: the checksum is wrong; building them again", self._path)
            return None
        _LOG.info("packed weights: %s, checked in %.2f s", self._path, time.perf_counter() - began_s)
        return arena

    def try_create(self) -> torch.Tensor | None:
        """Memory for the arena that :meth:`publish` makes the file; None, with a warning, where it cannot be had."""
        try:
            self._fresh = _Fresh(self._path, self._num_bytes)
        except OSError as exc:
            _LOG.warning("packed weights are not kept: %s cannot be written: %s", self._path.parent, exc)
            return None
        return self._fresh.arena

    def publish(self) -> None:
        """The created arena is filled: name it, for later starts."""
        fresh = self._fresh
        assert fresh is not None, "nothing was created"
        self._fresh = None
        try:
            fresh.publish(self._path, {"key": self._key, "checksum": _checksum(fresh.arena)})
        except OSError as exc:
            _LOG.warning("packed weights are not kept: %s: %s", self._path, exc)
            return
        _LOG.info("packed weights are kept in %s", self._path)

    def abandon(self) -> None:
        """Filling the created arena failed: its file goes away."""
        if self._fresh is not None:
            self._fresh.remove()
            self._fresh = None


class _Unusable(Exception):
    """The file is not what this start needs; says why. Never leaves this module."""


class _Fresh:
    """A file under a temporary name, mapped; all of its blocks exist, so writing to the mapping cannot fail."""

    def __init__(self, target: Path, num_bytes: int) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{target.stem}-", suffix=".building")
        self._name = Path(name)
        try:
            os.posix_fallocate(handle, 0, ALIGN + num_bytes)
            # Written in large pieces, a file's pages are as large as its file system can have them. A step that reads
            # weights from small pages spends a sixth of its time on looking up addresses.
            zeros = bytes(_WRITE_BYTES)
            for begin in range(0, ALIGN + num_bytes, _WRITE_BYTES):
                os.pwrite(handle, zeros[: ALIGN + num_bytes - begin], begin)
            memory = mmap.mmap(handle, ALIGN + num_bytes)
        except BaseException:
            self.remove()
            raise
        finally:
            os.close(handle)
        self._memory = memory
        self.arena = torch.frombuffer(memory, dtype=torch.uint8, offset=ALIGN)

    def publish(self, target: Path, header: dict[str, Any]) -> None:
        text = json.dumps(header).encode()
        head = MAGIC + len(text).to_bytes(8, "little") + text
        assert len(head) <= ALIGN, "the header is two hashes"
        self._memory[: len(head)] = head
        self._name.replace(target)

    def remove(self) -> None:
        self._name.unlink(missing_ok=True)


def _read_header(data: bytes) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(data[8:16], "little")
    if data[:8] != MAGIC or 16 + length > len(data):
        raise _Unusable("damaged: it has no header")
    try:
        header = json.loads(data[16 : 16 + length])
    except ValueError:
        raise _Unusable("damaged: its header is not JSON") from None
    if not isinstance(header, dict):
        raise _Unusable("damaged: its header is not an object")
    return header, -(-(16 + length) // ALIGN) * ALIGN


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _checksum(arena: torch.Tensor) -> int:
    found = c_uint64()
    library = required_library()
    library.lib.xllm_checksum(arena.data_ptr(), arena.numel(), byref(found), torch.get_num_threads())
    return found.value
