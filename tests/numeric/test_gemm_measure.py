"""The curve of products is measured with what serves."""

from __future__ import annotations

import pytest
import torch

from xllm.engine.kernels.linear.measure import ROWS, measure_gemm_curve
from xllm.engine.platform.native import native_library


def test_measuring_gives_a_rate_for_every_number_of_rows() -> None:
    before = torch.get_num_threads()
    curve = measure_gemm_curve("this CPU", num_threads=1)
    if native_library() is None:
        assert curve is None
        pytest.skip("no CPU library here")
    assert curve is not None and curve.rows == ROWS and curve.num_threads == 1
    assert torch.get_num_threads() == before
