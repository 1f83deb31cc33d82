"""Linear over packed weights: one layout that serves one row as well as a thousand.

Each output element is summed over the input dimension in one accumulator, in order, whatever the number of rows: a
row's result does not depend on the rows beside it (see csrc/gemm.h).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xllm.engine.kernels.linear import reference
from xllm.engine.platform.native import TYPES, required_library

COLUMNS = 64
"""Output features of one packed block."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight ``[O, I]`` in the order in which it is read."""

    data: torch.Tensor
    """``[ceil(O / 64), I, 64]``, padded with zeros; bfloat16 in pairs, ``[.., I / 2, 64, 2]``."""
    num_out: int
    num_in: int


def packed_shape(num_out: int, num_in: int, dtype: torch.dtype) -> tuple[int, int, int] | None:
    """Of a weight ``[O, I]`` when packed; None for types and shapes the kernels do not know."""
    if dtype not in TYPES or num_in % 2:
        return None
    return -(-num_out // COLUMNS), num_in, COLUMNS


def pack_weight(weight: torch.Tensor) -> torch.Tensor | PackedWeight:
    """``weight [O, I]`` packed; types and shapes the kernels do not know stay as they are."""
    num_out, num_in = weight.shape
    shape = packed_shape(num_out, num_in, weight.dtype)
    if shape is None:
        return weight
    packed = PackedWeight(torch.empty(shape, dtype=weight.dtype), num_out, num_in)
    pack_rows(packed, 0, weight.detach(), num_threads=required_library().num_threads(weight.numel()))
    return packed


def pack_rows(packed: PackedWeight, first: int, rows: torch.Tensor, *, num_threads: int = 1) -> None:
    """Put ``rows [R, I]`` of a weight, from row ``first`` on, into their places.

    Whole blocks only: ``first`` is a multiple of 64, and so is R unless the rows are the last ones. Different rows may
    be packed from several threads at once.
    """
    assert rows.dtype == packed.data.dtype and rows.shape[1] == packed.num_in, (rows.dtype, rows.shape)
    end = first + len(rows)
    assert first % COLUMNS == 0 and end <= packed.num_out, (first, end, packed.num_out)
    assert end % COLUMNS == 0 or end == packed.num_out, (first, end, packed.num_out)
    rows = rows.contiguous()
    target = packed.data.data_ptr() + first * packed.num_in * rows.element_size()
    required_library().lib.xllm_pack(
        TYPES[rows.dtype], rows.data_ptr(), target, len(rows), packed.num_in, num_threads
    )


def take_rows(weight: PackedWeight, rows: torch.Tensor) -> torch.Tensor:
    """Rows ``[T]`` of the weight as it was: ``[T, I]``. They lie apart, so this is for embeddings, not for products."""
    library = required_library()
    out = torch.empty((len(rows), weight.num_in), dtype=weight.data.dtype)
    assert rows.dtype == torch.int64 and rows.is_contiguous(), "rows are dense int64"
    if len(rows):
        assert int(rows.min()) >= 0 and int(rows.max()) < weight.num_out, "a row is outside the weight"
    library.lib.xllm_unpack_rows(
        TYPES[out.dtype],
        weight.data.data_ptr(),
        rows.data_ptr(),
        len(rows),
        weight.num_in,
        out.data_ptr(),
        library.num_threads(out.numel()),
    )
    return out


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | PackedWeight,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """See the reference; ``out_dtype`` is float32 or that of ``x``. An unpacked weight takes the reference's way."""
    if not isinstance(weight, PackedWeight):
        return reference.linear(x, weight, bias, out_dtype)
    assert x.dtype == weight.data.dtype and x.shape[-1] == weight.num_in, (x.dtype, x.shape, weight.num_in)
    library = required_library()
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], weight.num_out), dtype=out_dtype or x.dtype)
    library.lib.xllm_linear(
        TYPES[x.dtype],
        TYPES[out.dtype],
        x.data_ptr(),
        weight.data.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        x.numel() // weight.num_in,
        weight.num_out,
        weight.num_in,
        library.num_threads(weight.data.numel()),
    )
    return out
