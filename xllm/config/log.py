"""Logging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What is logged and how; always to stderr."""

    level: Literal["debug", "info", "warning", "error"] = opt("info", "--log-level")
    """Least severe level that is written."""
    format: Literal["human", "json"] = "human"
    """One readable line per record, or one JSON object per record."""
    log_requests: bool = opt(False, "--enable-log-requests", "--log-requests")
    """Write one line when a request arrives and one when it ends; never its text."""
