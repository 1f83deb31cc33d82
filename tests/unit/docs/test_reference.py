"""The generated reference pages are what the code says now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = _load_generator()


@pytest.mark.parametrize("page", sorted(GENERATOR.PAGES))
def test_page_is_up_to_date(page: str) -> None:
    committed = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert committed == GENERATOR.PAGES[page](), f"{page} is stale: run python docs/generate.py"


def test_every_error_is_on_the_page() -> None:
    page = GENERATOR.render_errors()
    for name in ("ContextTooLong", "InstanceLost", "InternalError"):
        assert f"`{name}`" in page
    assert "| 413 | `PayloadTooLargeError` |" in page
