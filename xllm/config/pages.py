"""Sizes of the pages of layout ``xtensor``: whole tokens, whole system pages, and few enough to be mapped."""

from __future__ import annotations

import math

from xllm.config.schema import format_bytes
from xllm.errors import ConfigError

MIN_PAGE_BYTES = 64 * 1024


def max_mappings(max_map_count: int) -> int:
    """Pages that may be mapped at once so that they take less than half of the process's mappings.

    The worst case is assumed: no two of them are neighbours, so each is a mapping of its own, and so is the gap behind.
    """
    return max((max_map_count // 2 - 8) // 2, 1)


def page_unit(token_bytes: int, system_page_bytes: int) -> int:
    """Every page is a multiple of this."""
    return math.lcm(token_bytes, system_page_bytes)


def page_bytes_from(least: int, token_bytes: int, system_page_bytes: int) -> int:
    """The smallest page of at least ``least`` bytes."""
    unit = page_unit(token_bytes, system_page_bytes)
    return unit * -(-max(least, MIN_PAGE_BYTES) // unit)


def check_page_bytes(page_bytes: int, token_bytes: int, system_page_bytes: int) -> None:
    """Raise ConfigError, with a size that works, for a page size that does not."""
    works = page_bytes_from(page_bytes, token_bytes, system_page_bytes)
    if page_bytes == works:
        return
    if page_bytes < MIN_PAGE_BYTES:
        why = f"at least {format_bytes(MIN_PAGE_BYTES)}"
    elif page_bytes % system_page_bytes:
        why = f"a multiple of the system's page of {system_page_bytes} bytes"
    else:
        why = f"a multiple of the {token_bytes} bytes of a token, so that no token lies across two pages"
    raise ConfigError(f"kv_page_bytes is {page_bytes}: must be {why}", hint=f"use --kv-page-bytes {works}")
