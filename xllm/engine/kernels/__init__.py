"""Kernels: one folder per operation, each with ``reference.py`` (torch, any device), some with ``native.py``
(the CPU library of ``csrc/``).

    linear/            x @ W^T + b, and how its weight is packed once
    rms_norm/          root-mean-square norm, computed in float32
    rotary/            rotary embedding of queries and keys, in place
    silu_mul/          silu(gate) * up of a fused projection
    moe/               softmax router and the experts' MLPs
    kv_write/          new keys and values into their slots
    paged_attention/   attention of groups of rows over gathered blocks
    contiguous_attention/  attention of one row over a base and a stride
    penalties/         repetition, frequency and presence penalties, in place
    sampling/          filters, counter-based Gumbel noise
    scoring/           log-probabilities, ranks and the best tokens
    table.py           the dispatch: operation -> implementations; ``select_kernels``

An implementation is a row of ``KERNEL_TABLE``; a new one adds a row and is tested against the reference by
the suite that walks the table. Kernels take plain tensors and know neither models nor batches.
"""

from __future__ import annotations

from xllm.engine.kernels.table import (
    KERNEL_TABLE,
    Kernel,
    Kernels,
    choose_kernels,
    load_kernels,
    parse_kernels,
    select_kernels,
)

__all__ = [
    "KERNEL_TABLE",
    "Kernel",
    "Kernels",
    "choose_kernels",
    "load_kernels",
    "parse_kernels",
    "select_kernels",
]
