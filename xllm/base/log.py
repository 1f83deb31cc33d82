"""Logging set-up: standard library loggers, one line per record to stderr, human or JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import IO

from xllm.config.log import LogConfig

REQUEST_LOGGER = "xllm.requests"
"""Lines about single requests; silent unless ``log_requests`` is on."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_LETTERS = {"DEBUG": "D", "INFO": "I", "WARNING": "W", "ERROR": "E", "CRITICAL": "E"}


class HumanFormatter(logging.Formatter):
    """``12:34:56.789 I engine scheduler: text key=value``."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback, where there is one, follows."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = record.getMessage()
        extra = "".join(f" {key}={value}" for key, value in _extra(record).items())
        name = record.name.removeprefix("xllm.")
        letter = _LETTERS.get(record.levelname, record.levelname)
        line = f"{at}.{int(record.msecs):03d} {letter} {self._process_name} {name}: {text}{extra}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per record; ``extra`` values are keys of it."""

    def __init__(self, process_name: str) -> None:
        super().__init__()
        self._process_name = process_name

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry = {
            "time_s": round(record.created, 6),
            "level": record.levelname.lower(),
            "process": self._process_name,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def setup_logging(config: LogConfig, process_name: str, *, stream: IO[str] | None = None) -> None:
    """Point the root logger at stderr; a second call replaces the first."""
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = JsonFormatter if config.format == "json" else HumanFormatter
    handler.setFormatter(formatter(process_name))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("xllm").setLevel(config.level.upper())
    logging.getLogger(REQUEST_LOGGER).setLevel(logging.INFO if config.log_requests else logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; call with ``__name__``."""
    return logging.getLogger(name)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}
