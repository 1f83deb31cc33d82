"""The curve of products is measured with what serves."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from xllm.engine.kernels.linear.measure import ROWS, measure_gemm_curve


def test_measuring_gives_a_rate_for_every_number_of_rows() -> None:
    before = torch.get_num_threads()
    curve = measure_gemm_curve("this CPU", num_threads=1)
    if not HAS_COMPILER:
        assert curve is None
        pytest.skip("no C++ compiler")
    assert curve is not None and curve.rows == ROWS and curve.num_threads == 1
    assert torch.get_num_threads() == before
