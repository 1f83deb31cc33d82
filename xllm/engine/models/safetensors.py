"""One safetensors file, memory-mapped.

Format: 8 bytes little-endian header length N, N bytes of JSON (name -> dtype, shape, [begin, end) relative
to the end of the header), then the data. Read here rather than with a library so that every complaint names
file and tensor, and so that a damaged header is refused before anything is mapped.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xllm.errors import ModelError

MAX_HEADER_BYTES = 100 * 1024 * 1024

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: absolute bytes ``[begin, end)`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Length in the file."""
        return self.end - self.begin


class SafetensorsFile:
    """A shard: its entries, and tensors that are views of the mapped file.

    Raises:
        ModelError: not a safetensors file, or it ends before its tensors do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                self.entries = _read_header(path, file.read(8), size, file)
                # Private and writable: torch refuses read-only memory; nothing ever writes.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            raise ModelError(f"{path}: the shard is missing", hint="download the model again") from None
        except (OSError, ValueError) as exc:
            raise ModelError(f"{path}: cannot read the shard: {exc}") from exc

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the mapped bytes; it must not be written to.

        Raises:
            ModelError: the tensor has a type we do not read.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ModelError(
                f"{self.path}: tensor {name!r} has dtype {entry.dtype!r}", hint="use a bf16 checkpoint"
            )
        if entry.num_bytes == 0:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        flat = torch.frombuffer(
            self._map, dtype=DTYPES[entry.dtype], count=math.prod(entry.shape), offset=entry.begin
        )
        return flat.view(entry.shape)

    def read_ahead(self, begin: int, end: int) -> None:
        """Have bytes of the file read in the background."""
        self._advise(mmap.MADV_WILLNEED, begin, end)

    def drop(self, begin: int, end: int) -> None:
        """Let go of whole pages of these bytes: they stay in the page cache, not in this process."""
        page = mmap.PAGESIZE
        self._advise(mmap.MADV_DONTNEED, -(-begin // page) * page, end // page * page)

    def _advise(self, advice: int, begin: int, end: int) -> None:
        begin -= begin % mmap.PAGESIZE
        if end > begin:
            self._map.madvise(advice, begin, end - begin)


def _read_header(path: Path, prefix: bytes, size: int, file: Any) -> dict[str, TensorEntry]:
    hint = "the download is incomplete or damaged; download the file again"
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ModelError(f"{path}: not a complete safetensors file ({size} bytes)", hint=hint)
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path}: the header is not valid JSON: {exc}", hint=hint) from exc
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the header is not an object", hint=hint)
    entries = {}
    for name, raw in header.items():
        if name == "__metadata__":
            continue
        entry = _parse_entry(path, name, raw, 8 + length)
        if entry.end > size:
            raise ModelError(
                f"{path}: tensor {name!r} ends at byte {entry.end}, the file has {size}: it is truncated",
                hint=hint,
            )
        entries[name] = entry
    return entries


def _parse_entry(path: Path, name: str, raw: Any, data_start: int) -> TensorEntry:
    try:
        shape = tuple(int(n) for n in raw["shape"])
        begin, end = (int(n) + data_start for n in raw["data_offsets"])
        dtype = str(raw["dtype"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ModelError(f"{path}: the header of tensor {name!r} is malformed: {raw!r:.200}") from exc
    known = DTYPES.get(dtype)
    bad = begin < data_start or end < begin or any(n < 0 for n in shape)
    if bad or (known is not None and math.prod(shape) * known.itemsize != end - begin):
        raise ModelError(f"{path}: tensor {name!r}: {dtype} {list(shape)} does not fit bytes {begin}..{end}")
    return TensorEntry(dtype, shape, begin, end)
