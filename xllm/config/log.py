"""Logging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xllm.config.schema import opt, require


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What is logged and how; always to stderr."""

    level: Literal["debug", "info", "warning", "error"] = opt("info", "--log-level")
    """Least severe level that is written."""
    format: Literal["human", "json"] = "human"
    """One readable line per record, or one JSON object per record."""
    log_requests: bool = opt(False, "--enable-log-requests", "--log-requests")
    """Write one line when a request arrives and one when it ends; never its text."""
    stats_interval_s: float = 10.0
    """Seconds between two lines of throughput and queue figures while there is work; 0: none."""

    def __post_init__(self) -> None:
        seconds = self.stats_interval_s
        require(((seconds >= 0, f"stats_interval_s is {seconds}: at least 0"),), "log")
