"""Reads a checkpoint into a model's places: mapped, in pieces, on several threads.

A piece is a run of rows of one tensor, a few MiB of the file. A thread packs it straight from the mapped file into its
place while the kernel reads the pieces ahead and the other threads work on theirs; then the piece's pages of the file
are let go. So a weight exists once, beside a few pieces.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from xllm.engine.kernels.linear.native import COLUMNS, PackedWeight, pack_rows
from xllm.engine.layers.sources import Source
from xllm.engine.models.checkpoint import Checkpoint

PIECE_BYTES = 4 * 1024 * 1024
AHEAD_PIECES = 8
"""Pieces that the kernel is asked to read before their turn."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``[begin, end)`` of a checkpoint tensor."""

    source: Source
    begin: int
    end: int
    file_begin: int
    file_end: int


def read_weights(
    checkpoint: Checkpoint,
    sources: Sequence[Source],
    packed: Mapping[int, Sequence[PackedWeight]],
    *,
    num_threads: int,
    progress: Callable[[int], None],
) -> None:
    """Fill every source's place.

    Args:
        packed: parameter's ``id`` -> where its matrices go packed; all others are filled as they are.
        progress: called with bytes of the checkpoint that were just placed.
    """
    ordered = sorted(sources, key=lambda s: (checkpoint.file(s.name), checkpoint.entry(s.name).begin))
    loose = _loose(sources, packed)
    pieces = [piece for source in ordered for piece in _pieces(checkpoint, source)]

    def place(index: int) -> int:
        piece = pieces[index]
        ahead = pieces[min(index + AHEAD_PIECES, len(pieces) - 1)]
        checkpoint.shard(ahead.source.name).read_ahead(ahead.file_begin, ahead.file_end)
        key = id(piece.source.parameter)
        weights = None if key in loose else packed.get(key)
        _place(checkpoint, piece, None if weights is None else weights[max(piece.source.index, 0)])
        checkpoint.shard(piece.source.name).drop(piece.file_begin, piece.file_end)
        return piece.file_end - piece.file_begin

    for piece in pieces[:AHEAD_PIECES]:
        checkpoint.shard(piece.source.name).read_ahead(piece.file_begin, piece.file_end)
    workers = max(1, min(num_threads, len(pieces)))
    # One thread per operation in each worker: a cast must not start a team of its own there.
    with ThreadPoolExecutor(
        workers, "xllm-weights", initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for done_bytes in pool.map(place, range(len(pieces))):
            progress(done_bytes)
    torch.set_num_threads(num_threads)
    for key, parameter in loose.items():
        stack = parameter.data.reshape(-1, *parameter.data.shape[-2:])
        for weight, rows in zip(packed[key], stack, strict=True):
            pack_rows(weight, 0, rows, num_threads=num_threads)


def _loose(
    sources: Sequence[Source], packed: Mapping[int, Sequence[PackedWeight]]
) -> dict[int, torch.nn.Parameter]:
    """Matrices fused of parts that are no whole blocks: gathered as they are, packed in the end."""
    found = {}
    for source in sources:
        weights = packed.get(id(source.parameter))
        if weights is None:
            continue
        num_out = weights[0].num_out
        end = source.start + (num_out if source.length < 0 else source.length)
        if source.start % COLUMNS or (end % COLUMNS and end != num_out):
            found[id(source.parameter)] = source.parameter
    return found


def _pieces(checkpoint: Checkpoint, source: Source) -> Iterator[Piece]:
    entry = checkpoint.entry(source.name)
    num_rows = entry.shape[0] if entry.shape else 1
    row_bytes = entry.num_bytes // num_rows if num_rows else 0
    step = max(1, PIECE_BYTES // max(row_bytes, 1))
    step = max(step // COLUMNS, 1) * COLUMNS if len(entry.shape) > 1 else num_rows
    for begin in range(0, num_rows, step):
        end = min(begin + step, num_rows)
        yield Piece(source, begin, end, entry.begin + begin * row_bytes, entry.begin + end * row_bytes)


@torch.inference_mode()
def _place(checkpoint: Checkpoint, piece: Piece, packed: PackedWeight | None) -> None:
    source = piece.source
    rows = checkpoint.tensor(source.name)
    rows = rows[piece.begin : piece.end] if rows.ndim else rows
    if packed is not None:
        pack_rows(packed, source.start + piece.begin, rows.to(packed.data.dtype))
        return
    target = source.target[piece.begin : piece.end] if rows.ndim else source.target
    if rows.dtype == target.dtype and target.is_contiguous():
        # Not copy_: this one gives the interpreter's lock away.
        ctypes.memmove(target.data_ptr(), rows.data_ptr(), rows.numel() * rows.element_size())
    else:
        target.copy_(rows)
