"""Which implementation of an operation runs: an explicit table and one pure choice at start-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from xllm.base.registry import Registry
from xllm.engine.platform.native import native_library
from xllm.errors import ConfigError

Kernel = Callable[..., Any]

KERNEL_TABLE: Registry[Any] = Registry(
    "kernel",
    {
        "linear.reference": "xllm.engine.kernels.linear.reference:linear",
        "linear.native": "xllm.engine.kernels.linear.native:linear",
        "pack_weight.reference": "xllm.engine.kernels.linear.reference:pack_weight",
        "pack_weight.native": "xllm.engine.kernels.linear.native:pack_weight",
        "sample.reference": "xllm.engine.kernels.sampling.reference:sample_gumbel",
        "sample.native": "xllm.engine.kernels.sampling.native:sample_gumbel",
        "pick.reference": "xllm.engine.kernels.sampling.reference:pick_largest",
        "pick.native": "xllm.engine.kernels.sampling.native:pick_largest",
        "penalise.reference": "xllm.engine.kernels.penalties.reference:penalise",
        "penalise.native": "xllm.engine.kernels.penalties.native:penalise",
        "score.reference": "xllm.engine.kernels.scoring.reference:score",
        "score.native": "xllm.engine.kernels.scoring.native:score",
        "rms_norm.native": "xllm.engine.kernels.rms_norm.native:rms_norm",
        "silu_mul.native": "xllm.engine.kernels.silu_mul.native:silu_mul",
        "paged_attention.native": "xllm.engine.kernels.paged_attention.native:paged_attention",
        "rms_norm.reference": "xllm.engine.kernels.rms_norm.reference:rms_norm",
        "rotary.reference": "xllm.engine.kernels.rotary.reference:rotary",
        "silu_mul.reference": "xllm.engine.kernels.silu_mul.reference:silu_mul",
        "moe.reference": "xllm.engine.kernels.moe.reference:moe",
        "moe.native": "xllm.engine.kernels.moe.native:moe",
        "pack_experts.reference": "xllm.engine.kernels.moe.reference:pack_experts",
        "pack_experts.native": "xllm.engine.kernels.moe.native:pack_experts",
        "kv_write.reference": "xllm.engine.kernels.kv_write.reference:kv_write",
        "paged_attention.reference": "xllm.engine.kernels.paged_attention.reference:paged_attention",
        "contiguous_attention.reference": "xllm.engine.kernels.contiguous_attention.reference:contiguous_attention",
    },
)

PREFERENCE: Mapping[str, tuple[str, ...]] = {"cpu": ("native", "reference"), "cuda": ("reference",)}
"""Per platform kind, implementations from best to last; the first that has a row and can run wins."""
FOLLOWS: Mapping[str, str] = {
    "pack_weight": "linear",
    "pack_experts": "moe",
    "pick": "sample",
    "penalise": "sample",
    "score": "sample",
}
"""Operations that go with another one's choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """One implementation per operation; models are built with it and call nothing else."""

    linear: Kernel
    pack_weight: Kernel
    """Once per weight after loading; what it gives is what ``linear`` takes as its weight."""
    rms_norm: Kernel
    rotary: Kernel
    silu_mul: Kernel
    moe: Kernel
    pack_experts: Kernel
    """Once per stack of experts' weights after loading, for ``moe``."""
    kv_write: Kernel
    paged_attention: Kernel
    """Rows differ in what they are called with; each has its attention backend."""
    contiguous_attention: Kernel
    sample: Kernel
    pick: Kernel
    """Of every row the largest logit and its token: what a greedy row samples, and how damaged rows are found."""
    penalise: Kernel
    score: Kernel


def choose_kernels(kind: str = "cpu", overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """Operation -> name of its implementation on a platform kind; ``overrides`` of the same form win.

    Raises:
        ConfigError: an override names an unknown operation or implementation, or one that cannot run here.
    """
    wanted = dict(overrides or {})
    operations = [f.name for f in fields(Kernels)]
    own = [op for op in operations if op not in FOLLOWS]
    unknown = sorted(set(wanted) - set(own))
    if unknown:
        raise ConfigError(f"unknown kernel operation {unknown[0]!r}", hint=f"known: {', '.join(own)}")
    return {op: _pick(op, kind, wanted.get(FOLLOWS.get(op, op))) for op in operations}


def select_kernels(kind: str = "cpu", overrides: Mapping[str, str] | None = None) -> Kernels:
    """The implementations of :func:`choose_kernels`, imported."""
    return load_kernels(choose_kernels(kind, overrides))


def load_kernels(chosen: Mapping[str, str]) -> Kernels:
    """Import what was chosen."""
    return Kernels(**{op: KERNEL_TABLE.load(f"{op}.{name}") for op, name in chosen.items()})


def parse_kernels(text: str) -> dict[str, str]:
    """Overrides from their written form: ``auto``, one implementation's name for all that have it, or a list
    ``linear=reference,silu_mul=native``.

    Raises:
        ConfigError: it is none of these.
    """
    if text == "auto":
        return {}
    if "=" not in text:
        rows = [name.partition(".") for name in KERNEL_TABLE.names()]
        found = {op: name for op, _, name in rows if name == text and op not in FOLLOWS}
        if not found:
            raise ConfigError(
                f"runner.kernels is {text!r}", hint="use auto, reference, native or op=name,..."
            )
        return found
    pairs = [item.partition("=") for item in text.split(",")]
    return {op.strip(): name.strip() for op, _, name in pairs}


def _pick(operation: str, kind: str, wanted: str | None) -> str:
    if wanted is None:
        names = (name for name in PREFERENCE[kind] if f"{operation}.{name}" in KERNEL_TABLE)
        return next(name for name in names if _can_run(name))
    KERNEL_TABLE.target(f"{operation}.{wanted}")
    if not _can_run(wanted):
        raise ConfigError(
            f"kernel {operation}.{wanted} needs the CPU kernels, which cannot be built here",
            hint="install g++, or leave runner.kernels at auto",
        )
    return wanted


def _can_run(name: str) -> bool:
    return name != "native" or native_library() is not None
