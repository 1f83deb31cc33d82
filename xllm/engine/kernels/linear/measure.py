"""Measures the curve of packed products: ``python -m xllm.engine.kernels.linear.measure``, about two seconds.

``scripts/setup`` runs it once the CPU kernels are built; nothing is measured when an engine starts.
"""

from __future__ import annotations

import time

import torch

from xllm.config.gemm_curve import GemmCurve, curve_path, save_curve
from xllm.engine.kernels.linear.native import PackedWeight, linear, pack_weight
from xllm.engine.platform.native import native_library

ROWS = (16, 32, 64, 128, 256, 512)
NUM_IN, NUM_OUT = 1024, 4096
NUM_WEIGHTS = 12
"""Of 8 MiB each: more than the caches hold, as in a model."""
MIN_S = 0.02
NUM_ROUNDS = 4


def measure_gemm_curve(cpu_name: str, *, num_threads: int) -> GemmCurve | None:
    """Best rate of several rounds per number of rows, with bfloat16 weights; None without the CPU library."""
    if native_library() is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        weights = [
            pack_weight(torch.ones((NUM_OUT, NUM_IN), dtype=torch.bfloat16)) for _ in range(NUM_WEIGHTS)
        ]
        rates = [0.0] * len(ROWS)
        for _ in range(NUM_ROUNDS):
            for index, rows in enumerate(ROWS):
                rates[index] = max(rates[index], _rate(weights, rows))
    finally:
        torch.set_num_threads(before)
    return GemmCurve(
        cpu_name=cpu_name, num_threads=num_threads, dtype="bfloat16", rows=ROWS, flops_per_s=tuple(rates)
    )


def _rate(weights: list[torch.Tensor | PackedWeight], rows: int) -> float:
    x = torch.ones((rows, NUM_IN), dtype=torch.bfloat16)
    count, begin_s = 0, time.perf_counter()
    while True:
        linear(x, weights[count % len(weights)], None)
        count += 1
        elapsed_s = time.perf_counter() - begin_s
        if elapsed_s >= MIN_S:
            return 2.0 * rows * NUM_IN * NUM_OUT * count / elapsed_s


def main() -> None:
    """Measure with all cores and keep the result."""
    from xllm.base.machine import gather_machine_facts

    facts = gather_machine_facts()
    if not facts.has_fast_cpu_bf16:
        print("no curve: this CPU runs bfloat16 models in float32")
        return
    curve = measure_gemm_curve(facts.cpu_name, num_threads=facts.num_cores)
    if curve is None:
        print("no curve: the CPU kernels cannot be built here")
        return
    save_curve(curve, curve_path())
    found = ", ".join(
        f"{rows} rows {rate / 1e9:.0f}" for rows, rate in zip(curve.rows, curve.flops_per_s, strict=True)
    )
    print(f"products in bfloat16 on {curve.num_threads} threads, GFLOP/s: {found}")


if __name__ == "__main__":
    main()
