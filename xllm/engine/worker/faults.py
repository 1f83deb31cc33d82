"""Which exceptions of torch fail one step, and which mean that the device is gone."""

from __future__ import annotations

import torch

from xllm.engine.executor.faults import PlainFaults
from xllm.types.output import OutputError

_CUDA_FAULTS = ("CUDA error", "device-side assert", "NCCL error", "CUBLAS_STATUS_EXECUTION_FAILED")


class TorchFaults:
    """Knows torch's ways of saying that a device is gone or full."""

    def is_device_lost(self, error: BaseException) -> bool:
        """Whether no later step can run on the device: a sticky CUDA error. Out of memory is not one."""
        if isinstance(error, torch.OutOfMemoryError):
            return False
        accelerator_error = getattr(torch, "AcceleratorError", None)
        if accelerator_error is not None and isinstance(error, accelerator_error):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in _CUDA_FAULTS)

    def to_output_error(self, error: BaseException, what: str) -> OutputError:
        """The wire form of an exception; a lost or full device may be retried elsewhere."""
        if self.is_device_lost(error) or isinstance(error, torch.OutOfMemoryError):
            text = f"{what}: {type(error).__name__}: {error}"
            return OutputError("ServiceUnavailableError", 503, text, True)
        return PlainFaults().to_output_error(error, what)
