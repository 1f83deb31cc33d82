"""Typed reading of the JSON files of a model directory: every complaint names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xllm.errors import ModelError

MAX_JSON_BYTES = 256 * 1024 * 1024


def read_json_object(path: Path, *, what: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ModelError: missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(
                f"{path}: the {what} has {path.stat().st_size} bytes, more than {MAX_JSON_BYTES}"
            )
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"{path}: the {what} is missing",
            hint="point to a complete Hugging Face model directory",
        ) from None
    except OSError as exc:
        raise ModelError(f"{path}: cannot read the {what}: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise ModelError(
            f"{path}: the {what} is not valid JSON: {exc}", hint="download the file again"
        ) from exc
    if not isinstance(data, dict):
        raise ModelError(f"{path}: the {what} is a {type(data).__name__}, not an object")
    return data


class JsonReader:
    """One JSON object; null counts as absent."""

    def __init__(self, path: Path, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.raw = raw
        self._prefix = prefix

    def error(self, key: str, problem: str, *, hint: str = "") -> ModelError:
        """A ModelError that names file, key and value."""
        value = f" = {self.raw[key]!r}" if key in self.raw else ""
        if len(value) > 200:
            value = value[:200] + "..."
        return ModelError(f"{self.path}: {self._prefix}{key}{value}: {problem}", hint=hint)

    def section(self, key: str) -> JsonReader:
        """A nested object; absent is empty."""
        value = self.raw.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, "must be an object")
        return JsonReader(self.path, value, f"{self._prefix}{key}.")

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        """An integer, null, or ``default`` when the key is absent."""
        value = self.raw.get(key, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            if not (isinstance(value, float) and value.is_integer()):
                raise self.error(key, "must be an integer")
            value = int(value)
        return value

    def integer(self, key: str, *, default: int | None = None, minimum: int = 1) -> int:
        """An integer >= ``minimum``; null and absent give the default."""
        value = self.optional_integer(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        if not minimum <= value < 2**31:
            raise self.error(key, f"must be an integer in {minimum}..2^31")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """One integer or a list of them; absent is empty."""
        value = self.raw.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in items):
            raise self.error(key, "must be an integer >= 0 or a list of such")
        return tuple(items)

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None."""
        value = self.raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.error(key, "must be a finite number")
        return float(value)

    def number(self, key: str, *, default: float | None = None) -> float:
        """A finite number; null and absent give the default."""
        value = self.optional_number(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """A JSON true or false."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value
