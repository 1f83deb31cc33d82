from __future__ import annotations

import sys

import pytest

from benchmarks.environment import describe


def test_the_command_is_what_was_typed_without_paths_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["benchmarks/x.py", "--seed", "1", "--keep", "/var/logs", "--json", "/var/x.json", "--fast"]
    monkeypatch.setattr(sys, "argv", typed)
    assert describe("--keep")["command"] == "python benchmarks/x.py --seed 1 --fast"
    monkeypatch.setattr(sys, "argv", ["b.py", "--json", "benchmarks/results/b.json"])
    assert describe("--keep")["command"] == "python b.py --json benchmarks/results/b.json"
    monkeypatch.setattr(sys, "argv", [".venv/bin/xllm", "bench", "step", "--output-json", "/tmp/x.json"])
    assert describe()["command"] == "xllm bench step"
    monkeypatch.setattr(sys, "argv", ["xllm/cli/main.py", "bench", "startup", "--", "demo"])
    assert describe()["command"] == "xllm bench startup -- demo"
