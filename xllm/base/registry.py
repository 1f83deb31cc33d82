"""Plug-in tables: name -> "module:attribute", imported only when the row is asked for.

A table is explicit (read it and you know what exists) and open: an installed package may add rows through the
entry-point group ``xllm.<kind>``. Nothing registers itself on import.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from xllm.errors import ConfigError, boundary

T = TypeVar("T")


class Registry(Generic[T]):
    """The rows of one kind of plug-in; ``load`` gives the factory of a ``T``.

    Own rows win over entry points of the same name, so a package cannot replace a built-in silently.
    """

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        for name, target in rows.items():
            if target.count(":") != 1:
                raise ValueError(f"row {name!r} of {kind} must be 'module:attribute', got {target!r}")
        self._rows = dict(rows)

    @property
    def group(self) -> str:
        """The entry-point group that adds rows."""
        return f"xllm.{self.kind}"

    def names(self) -> tuple[str, ...]:
        """All names, sorted: own rows and those of installed packages."""
        return tuple(sorted(self._all_rows()))

    def __contains__(self, name: object) -> bool:
        return name in self._all_rows()

    def target(self, name: str) -> str:
        """The "module:attribute" of a row, without importing it.

        Raises:
            ConfigError: no such row; names the nearest.
        """
        rows = self._all_rows()
        if name not in rows:
            near = difflib.get_close_matches(name, rows, n=1)
            known = ", ".join(sorted(rows)) or "none"
            hint = f"did you mean {near[0]!r}? known: {known}" if near else f"known: {known}"
            raise ConfigError(f"unknown {self.kind} {name!r}", hint=hint)
        return rows[name]

    def load(self, name: str) -> Callable[..., T]:
        """Import a row and return the class or function it names.

        Raises:
            ConfigError: no such row, or its module cannot be imported.
        """
        module_name, attribute = self.target(name).split(":")
        with boundary(ConfigError, f"cannot load {self.kind} {name!r} from {module_name}"):
            found: Any = getattr(import_module(module_name), attribute)
        return cast("Callable[..., T]", found)

    def _all_rows(self) -> dict[str, str]:
        rows = {point.name: point.value for point in entry_points(group=self.group)}
        rows.update(self._rows)
        return rows
