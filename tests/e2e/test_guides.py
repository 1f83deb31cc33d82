"""Python of the guides runs as it stands, on the bundled demo model and a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.served import Served

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served("demo", "--kv-cache-memory-bytes", "64MiB") as served:
        yield served


def run_snippets(page: str, url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run every snippet of a page against ``url``; returns what was printed."""
    snippets = _PYTHON.findall((GUIDES / page).read_text(encoding="utf-8"))
    assert snippets
    for code in snippets:
        here = code.replace("http://localhost:8000", url)
        exec(compile(here, page, "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_quickstart(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Paris" in run_snippets("quickstart.md", server.url, capsys)


def test_clients(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run_snippets("clients.md", server.url, capsys)
    assert "cached:" in printed
    assert "'name': 'get_weather'" in printed
    assert printed.splitlines()[-1].startswith("400 ")


def test_offline_api(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Paris" in run_snippets("offline-api.md", "", capsys)
