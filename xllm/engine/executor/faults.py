"""Which exceptions fail one step, and which mean that nothing can run any more."""

from __future__ import annotations

from typing import Protocol

from xllm.errors import XllmError
from xllm.types.output import OutputError


class Faults(Protocol):
    """Classifies what a step raised."""

    def is_device_lost(self, error: BaseException) -> bool:
        """Whether no later step can run."""
        ...

    def to_output_error(self, error: BaseException, what: str) -> OutputError:
        """The wire form of an exception."""
        ...


class PlainFaults:
    """Without a device: our errors keep type and status, others are internal errors, nothing is ever lost."""

    def is_device_lost(self, error: BaseException) -> bool:
        """Never."""
        return False

    def to_output_error(self, error: BaseException, what: str) -> OutputError:
        """See the class."""
        if isinstance(error, XllmError):
            return OutputError(
                error.type_name, error.status, f"{what}: {error.public_message}", error.retryable
            )
        return OutputError("InternalServerError", 500, f"{what}: {type(error).__name__}: {error}")
