from __future__ import annotations

from pathlib import Path

from xllm.base import metrics
from xllm.config import reference
from xllm.config.load import Schema

DOCS = Path(__file__).resolve().parents[3] / "docs" / "reference"


def test_configuration_page_is_up_to_date_and_complete() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == reference.render_page(), (
        "run: python -m xllm.config.reference > docs/reference/configuration.md"
    )
    assert all(f"`{key}`" in page for key in Schema().by_key)


def test_metrics_page_is_up_to_date() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics.render_page(), "run: python -m xllm.base.metrics > docs/reference/metrics.md"
