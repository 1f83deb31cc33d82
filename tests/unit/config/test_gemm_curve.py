from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.model_dirs import QWEN3_06B, make_spec
from tests.unit.config.test_resolve import decide, machine
from xllm.config.gemm_curve import GemmCurve, save_curve, try_load_curve

CURVE = GemmCurve(
    cpu_name="a CPU",
    num_threads=2,
    dtype="bfloat16",
    rows=(16, 32, 64, 128, 256),
    flops_per_s=(5e11, 8e11, 9.6e11, 9.9e11, 1e12),
)


def test_a_chunk_is_a_quarter_of_a_second_of_products() -> None:
    assert CURVE.chunk_tokens(1e9) == 192  # 250 tokens, in whole blocks of 64
    assert CURVE.chunk_tokens(1e7) == 2048  # a small model: no more than the largest
    assert CURVE.chunk_tokens(1e11) == 64  # a large one: still enough rows for the products


def test_a_machine_that_needs_many_rows_gets_them() -> None:
    slow_start = replace(CURVE, flops_per_s=(1e11, 2e11, 4e11, 8e11, 1e12))
    assert slow_start.efficient_rows == 256
    assert slow_start.chunk_tokens(1e11) == 256


def test_a_kept_curve_comes_back_for_its_cpu_and_threads_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "curve.json"
    assert try_load_curve(path, cpu_name="a CPU", num_threads=2) is None
    save_curve(CURVE, path)
    assert try_load_curve(path, cpu_name="a CPU", num_threads=2) == CURVE
    assert try_load_curve(path, cpu_name="another", num_threads=2) is None
    assert try_load_curve(path, cpu_name="a CPU", num_threads=1) is None  # a container with fewer cores
    assert [p.name for p in path.parent.iterdir()] == ["curve.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": [16, 16, 64, 128, 256]},
        {"flops_per_s": [0, 1, 1, 1, 1]},
        {"format": 0},
        {"x": 1},
    ],
)
def test_a_damaged_curve_is_no_curve(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "curve.json"
    save_curve(CURVE, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert try_load_curve(path, cpu_name="a CPU", num_threads=2) is None
    path.write_text("{")
    assert try_load_curve(path, cpu_name="a CPU", num_threads=2) is None


def test_the_curve_chooses_the_chunk(tmp_path: Path) -> None:
    qwen = make_spec(tmp_path, QWEN3_06B)
    measured = replace(machine(), gemm=CURVE)
    resolved = decide(qwen, measured)
    assert resolved.max_num_batched_tokens == 256
    assert "measured here" in resolved.reasons["scheduler.max_num_batched_tokens"].reason
    assert decide(qwen, measured, max_num_batched_tokens=512).max_num_batched_tokens == 512
    assert decide(qwen, measured, dtype="float32").max_num_batched_tokens == 1024
    assert decide(qwen, measured, max_num_seqs=300).max_num_batched_tokens == 300
    assert decide(qwen, machine()).max_num_batched_tokens == 1024
