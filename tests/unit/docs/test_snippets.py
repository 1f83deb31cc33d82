"""Python of the guides that needs neither model nor server runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xllm.engine.scheduler.order import ORDER_KEYS

DOCS = Path(__file__).resolve().parents[3] / "docs"
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_snippets(page: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run every snippet as a script; returns what was printed."""
    for code in _PYTHON.findall((DOCS / page).read_text(encoding="utf-8")):
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_a_policy_of_ones_own_runs_in_the_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        lines = run_snippets("guides/researcher.md", capsys).splitlines()
    finally:
        ORDER_KEYS.pop("shortest_prompt", None)
    assert len(lines) == 4
    preemptions = {line.split()[1]: int(line.split()[-2]) for line in lines}
    assert preemptions["ConservativeAdmission"] == 0 < preemptions["WatermarkAdmission"]


def test_a_profile_can_be_printed_to_start_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert '"peak_flops"' in run_snippets("concepts/timed-executor.md", capsys)
