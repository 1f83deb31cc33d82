from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from xllm.engine.platform import native
from xllm.engine.platform.native import native_library
from xllm.engine.platform.native_build import read_cpu_flags, usable_variants


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Half-precision oracles are slow where the CPU has no such arithmetic; the first to need a variant compiles it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whichever variants this CPU runs, and whichever tests ran before."""
    torch.manual_seed(1)


@pytest.fixture(params=usable_variants(read_cpu_flags()))
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every variant of the CPU library that this CPU runs, as the one that kernels use."""
    library = native_library(request.param)
    assert library is not None and library.variant == request.param
    real = native.native_library
    monkeypatch.setattr(native, "native_library", lambda name="": library if not name else real(name))
    return str(request.param)
