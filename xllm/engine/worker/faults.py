"""Which exceptions fail one step, and which mean that the device is gone."""

from __future__ import annotations

import torch

from xllm.errors import XllmError
from xllm.types.output import OutputError

_CUDA_FAULTS = ("CUDA error", "device-side assert", "NCCL error", "CUBLAS_STATUS_EXECUTION_FAILED")


def is_device_lost(error: BaseException) -> bool:
    """Whether no later step can run on the device: a sticky CUDA error. Out of memory is not one."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CUDA_FAULTS)


def to_output_error(error: BaseException, what: str) -> OutputError:
    """The wire form of an exception; ours keep their type and status, others are internal errors."""
    if isinstance(error, XllmError):
        return OutputError(error.type_name, error.status, f"{what}: {error.public_message}", error.retryable)
    lost = is_device_lost(error) or isinstance(error, torch.OutOfMemoryError)
    return OutputError(
        "ServiceUnavailableError" if lost else "InternalServerError",
        503 if lost else 500,
        f"{what}: {type(error).__name__}: {error}",
        lost,
    )
