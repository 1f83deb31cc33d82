"""--print-config: every effective value, who said it, and why it is what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from xllm.config.load import Loaded
from xllm.config.memory_plan import format_memory
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.schema import Option, format_bytes, options_of
from xllm.config.serve import SECTIONS

MASK = "***"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One option as it will be used."""

    key: str
    """``section.field``."""
    value: Any
    """The effective value; secrets are masked."""
    source: str
    """default, yaml FILE, env NAME, flag --x, or derived."""
    reason: str
    """Why, for a derived value; else empty."""


def effective_rows(loaded: Loaded, resolved: ResolvedEngineConfig | None = None) -> list[Row]:
    """A row per option; without ``resolved`` (no model at hand) open values stay "auto"."""
    reasons = resolved.reasons if resolved is not None else {}
    rows = []
    for section, config in loaded.sections.items():
        for option in options_of(section, SECTIONS[section]):
            value = getattr(config, option.name)
            decision = reasons.get(option.key)
            if decision is not None:
                rows.append(
                    Row(key=option.key, value=decision.value, source="derived", reason=decision.reason)
                )
            else:
                source = str(loaded.source(option.key))
                rows.append(Row(key=option.key, value=_masked(option, value), source=source, reason=""))
    return rows


def format_text(loaded: Loaded, resolved: ResolvedEngineConfig | None = None) -> str:
    """The rows as a table, then the memory sum and the settings without effect."""
    cells = [("option", "value", "source", "reason")]
    for row in effective_rows(loaded, resolved):
        cells.append((row.key, _shown(row.key, row.value), row.source, row.reason))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in cells
    ]
    if resolved is not None:
        lines += ["", f"KV: {resolved.num_blocks} blocks of {resolved.block_size} tokens"]
        lines += [f"memory: {format_memory(resolved.memory)}"]
        lines += [f"warning: {text}" for text in resolved.warnings]
    return "\n".join(lines)


def format_json(loaded: Loaded, resolved: ResolvedEngineConfig | None = None) -> str:
    """The rows as one JSON object: key -> value, source, reason."""
    rows = {
        row.key: {"value": row.value, "source": row.source, "reason": row.reason}
        for row in effective_rows(loaded, resolved)
    }
    extra: dict[str, Any] = {}
    if resolved is not None:
        memory = resolved.memory
        extra = {
            "num_blocks": resolved.num_blocks,
            "memory": {
                "budget_bytes": memory.budget_bytes,
                "weights_bytes": memory.weights_bytes,
                "activations_bytes": memory.activations_bytes,
                "reserve_bytes": memory.reserve_bytes,
                "kv_bytes": memory.kv_bytes,
            },
            "warnings": list(resolved.warnings),
        }
    return json.dumps({"options": rows, **extra}, indent=2)


def _masked(option: Option, value: Any) -> Any:
    if not option.secret or not value:
        return value
    return [MASK] * len(value) if isinstance(value, tuple) else MASK


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "auto" if key != "api.admin_api_key" else "none"
    if value == "":
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return ",".join(str(part) for part in value) or "none"
    if key.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return str(value)
