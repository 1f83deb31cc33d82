"""The JSON file: sessions, starts, runs, trials. Written after every row, so an interrupted session keeps what
it measured.

Rows of earlier sessions stay; the report picks. Paths of the machine are replaced before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KINDS = ("starts", "runs", "unloaded", "trials")


def read(path: Path) -> dict[str, Any]:
    """What earlier sessions wrote; an empty record where there is none."""
    empty: dict[str, Any] = {"sessions": [], "skipped": {}, **{kind: [] for kind in KINDS}}
    return {**empty, **json.loads(path.read_text())} if path.exists() else empty


class Record:
    """Adds the rows of one session."""

    def __init__(self, path: Path, session: Mapping[str, Any], hidden: Mapping[str, str]) -> None:
        """``hidden`` maps paths to the names written in their place."""
        self.data = read(path)
        self.session = len(self.data["sessions"])
        self._path = path
        self._hidden = sorted(hidden.items(), key=lambda item: -len(item[0]))
        self.data["sessions"].append(dict(session))

    def add(self, kind: str, row: Row) -> None:
        """Append one row to ``starts``, ``runs``, ``unloaded`` or ``trials``; what works now is no longer skipped."""
        assert kind in KINDS, kind
        for what in ("all", row.get("workload", kind)):
            self.data["skipped"].pop(f"{row['system']} {what}", None)
        self.data[kind].append({"session": self.session, **row})
        self.write()

    def skip(self, system: str, what: str, reason: str) -> None:
        """Say why ``system`` has no figures for ``what``; the command and its output belong to the reason."""
        print(f"skipped: {system} {what}: {reason}", flush=True)
        self.data["skipped"][f"{system} {what}"] = {"session": self.session, "reason": reason}
        self.write()

    def write(self) -> None:
        """The whole file, replaced at once."""
        text = json.dumps(self.data, indent=1)
        for path, name in self._hidden:
            text = text.replace(path, name)
        partial = self._path.with_suffix(".partial")
        partial.write_text(text + "\n")
        partial.replace(self._path)
