"""One NVIDIA GPU."""

from __future__ import annotations

import torch

from xllm.errors import ConfigError


class CudaPlatform:
    """One NVIDIA GPU, by index.

    Raises:
        ConfigError: no GPU, or not so many.
    """

    kind = "cuda"
    max_gather_bytes = 1024 * 1024 * 1024

    def __init__(self, index: int) -> None:
        if not torch.cuda.is_available():
            raise ConfigError("device is 'cuda' but torch sees no GPU", hint="use --device cpu")
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device is 'cuda:{index}', the machine has {torch.cuda.device_count()} GPU(s)")
        self.device = torch.device("cuda", index)

    @property
    def name(self) -> str:
        """The marketing name."""
        return str(torch.cuda.get_device_name(self.device))

    @property
    def total_memory_bytes(self) -> int:
        """Of the GPU."""
        return int(torch.cuda.mem_get_info(self.device)[1])

    @property
    def free_memory_bytes(self) -> int:
        """Free now, over all processes."""
        return int(torch.cuda.mem_get_info(self.device)[0])

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self.device)
