from __future__ import annotations

import pytest

from xllm.engine.platform import native
from xllm.engine.platform.native import native_library
from xllm.engine.platform.native_build import read_cpu_flags, usable_variants


@pytest.fixture(params=usable_variants(read_cpu_flags()))
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every variant of the CPU library that this CPU runs, as the one that kernels use."""
    library = native_library(request.param)
    assert library is not None and library.variant == request.param
    real = native.native_library
    monkeypatch.setattr(native, "native_library", lambda name="": library if not name else real(name))
    return str(request.param)
