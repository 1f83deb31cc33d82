"""Real server processes, one per session and kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.http import ask
from tests.fakes.served import Served


def check_alive(running: Served) -> None:
    """Server and engine are as well at the end as at the start."""
    log = "".join(running.log)
    assert running.process.poll() is None, f"the server died:\n{log}"
    assert ask(f"{running.url}/health").status == 200, f"the engine died:\n{log}"
    assert "Traceback" not in log, log


@pytest.fixture(scope="session")
def served(tiny_model_dir: Path) -> Iterator[Served]:
    """The tiny random model on the CPU."""
    flags = ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--max-model-len", "256"]
    with Served(tiny_model_dir, *flags, "--served-model-name", "tiny") as running:
        yield running
        check_alive(running)


@pytest.fixture(scope="session")
def timed(tiny_model_dir: Path) -> Iterator[Served]:
    """The tiny model's tokenizer over a timed engine: no torch, steps at once, text of random tokens."""
    flags = ["--executor", "timed:instant", "--max-model-len", "64", "--served-model-name", "tiny"]
    with Served(tiny_model_dir, *flags) as running:
        yield running
        check_alive(running)
