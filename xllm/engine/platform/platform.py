"""Platform: one device, seen through the few facts that planning needs."""

from __future__ import annotations

from typing import Protocol

import torch

from xllm.errors import ConfigError

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Platform(Protocol):
    """One device. Reading a fact has no side effect; ``synchronize`` waits for queued work."""

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``; the column of the kernel table."""

    @property
    def name(self) -> str:
        """Of the device, for logs."""

    @property
    def device(self) -> torch.device:
        """Where tensors live."""

    @property
    def total_memory_bytes(self) -> int:
        """Of the device, or of the host within its container limit."""

    @property
    def free_memory_bytes(self) -> int:
        """Available now."""

    @property
    def max_gather_bytes(self) -> int:
        """How much K and V attention may gather at once: small enough for the caches, large enough to be
        busy."""

    def synchronize(self) -> None:
        """Return when all queued work is done."""


def select_platform(device: str = "auto") -> Platform:
    """The platform of ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: an unknown name, or no such GPU.
    """
    from xllm.engine.platform.cpu import CpuPlatform
    from xllm.engine.platform.cuda import CudaPlatform

    kind, _, index = device.partition(":")
    if kind == "auto":
        return CudaPlatform(0) if torch.cuda.is_available() else CpuPlatform()
    if kind == "cpu" and not index:
        return CpuPlatform()
    if kind == "cuda" and (not index or index.isdigit()):
        return CudaPlatform(int(index or 0))
    raise ConfigError(f"device is {device!r}", hint="use auto, cpu, cuda or cuda:N")


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a dtype name of the configuration.

    Raises:
        ConfigError: models do not run in it.
    """
    if name not in TORCH_DTYPES:
        raise ConfigError(f"dtype is {name!r}", hint=f"use one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[name]
