"""Which implementation of an operation runs: an explicit table and one pure choice at start-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from xllm.base.registry import Registry
from xllm.errors import ConfigError

Kernel = Callable[..., Any]

KERNEL_TABLE: Registry[Any] = Registry(
    "kernel",
    {
        "linear.reference": "xllm.engine.kernels.linear.reference:linear",
        "rms_norm.reference": "xllm.engine.kernels.rms_norm.reference:rms_norm",
        "rotary.reference": "xllm.engine.kernels.rotary.reference:rotary",
        "silu_mul.reference": "xllm.engine.kernels.silu_mul.reference:silu_mul",
        "moe.reference": "xllm.engine.kernels.moe.reference:moe",
        "kv_write.reference": "xllm.engine.kernels.kv_write.reference:kv_write",
        "paged_attention.reference": "xllm.engine.kernels.paged_attention.reference:paged_attention",
        "contiguous_attention.reference": "xllm.engine.kernels.contiguous_attention.reference:contiguous_attention",
    },
)

PREFERENCE: Mapping[str, tuple[str, ...]] = {"cpu": ("reference",), "cuda": ("reference",)}
"""Per platform kind, implementations from best to last; the first that has a row wins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """One implementation per operation; models are built with it and call nothing else."""

    linear: Kernel
    rms_norm: Kernel
    rotary: Kernel
    silu_mul: Kernel
    moe: Kernel
    kv_write: Kernel
    paged_attention: Kernel
    contiguous_attention: Kernel


def select_kernels(kind: str = "cpu", overrides: Mapping[str, str] | None = None) -> Kernels:
    """Choose for a platform kind; ``overrides`` maps operations to implementations (moe -> reference).

    Raises:
        ConfigError: an override names an unknown operation or implementation.
    """
    chosen = dict(overrides or {})
    operations = [f.name for f in fields(Kernels)]
    unknown = sorted(set(chosen) - set(operations))
    if unknown:
        raise ConfigError(f"unknown kernel operation {unknown[0]!r}", hint=f"known: {', '.join(operations)}")
    return Kernels(**{op: KERNEL_TABLE.load(f"{op}.{_pick(op, kind, chosen.get(op))}") for op in operations})


def _pick(operation: str, kind: str, wanted: str | None) -> str:
    if wanted is not None:
        return wanted
    return next(name for name in PREFERENCE[kind] if f"{operation}.{name}" in KERNEL_TABLE)
