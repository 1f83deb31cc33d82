"""What ``scripts/gpu-check`` runs: the GPU tests, and the roofline of the GPU they ran on.

Writes ``roofline.json`` (measured, medians of repetitions), ``steps.json`` (what ``xllm bench step`` measures, a
Qwen3-0.6B shape), ``tests.xml`` (JUnit) and ``summary.txt``. Bandwidth counts bytes read plus bytes written. The GEMM
figure is the best shape tried, on random data: clocks drop under random data, zeros would flatter.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
NEEDED = ("torch", "numpy", "msgspec", "safetensors", "tokenizers", "transformers")
NEEDED_BY_TESTS = ("pytest", "pytest_timeout", "hypothesis")
GPU_TESTS = ("tests/numeric", "tests/equivalence", "tests/e2e")
GEMM_SIZES = (4096, 8192)
COPY_BYTES = 2 * 1024**3
STEP_ROWS = (1, 64, 256)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<gpu>/")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("pytest_args", nargs="*", help="passed to pytest")
    args = parser.parse_args()
    missing = [name for name in (*NEEDED, *NEEDED_BY_TESTS) if importlib.util.find_spec(name) is None]
    if missing:
        print(f"gpu-check: missing packages: {', '.join(missing)}", file=sys.stderr)
        print("hint: --wheels DIR with their wheels", file=sys.stderr)
        return 2
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: no GPU: torch sees no CUDA device", file=sys.stderr)
        return 2
    gpu = torch.cuda.get_device_name(0)
    out = args.out or ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    roofline = measure_roofline(repetitions=5 if args.quick else 20)
    (out / "roofline.json").write_text(json.dumps(roofline, indent=2) + "\n")
    print(json.dumps(roofline, indent=2), flush=True)
    status = run_tests(out, args.pytest_args)
    measure_step_costs(out)
    verdict = "passed" if status == 0 else f"failed (pytest exit status {status})"
    (out / "summary.txt").write_text(f"{gpu}: GPU tests {verdict}\n{json.dumps(roofline)}\n")
    print(f"gpu-check: {gpu}: GPU tests {verdict}; results in {out}")
    return 0 if status == 0 else 1


def measure_step_costs(out: Path) -> None:
    """`xllm bench step` without its command line, which needs more packages than a bare GPU image has."""
    from xllm.bench.step import format_steps, measure_steps, write_shape
    from xllm.config.model import ModelConfig
    from xllm.config.runner import RunnerConfig
    from xllm.config.scheduler import SchedulerConfig
    from xllm.config.serve import EngineConfig

    with tempfile.TemporaryDirectory() as folder:
        write_shape("qwen3-0.6b", Path(folder))
        config = EngineConfig(
            model=ModelConfig(model=folder, load_format="dummy", dtype="bfloat16", max_model_len=2048),
            scheduler=SchedulerConfig(max_num_seqs=max(STEP_ROWS)),
            runner=RunnerConfig(device="cuda"),
        )
        costs = measure_steps(config, STEP_ROWS, input_len=128, num_steps=64, seed=0)
    print(format_steps(costs), flush=True)
    (out / "steps.json").write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")


def run_tests(out: Path, extra: list[str]) -> int:
    """Run the tests marked ``gpu``; the device path is the same code the CPU tests run."""
    folders = [folder for folder in GPU_TESTS if (ROOT / folder).is_dir()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-W",
        "default",  # the image's versions of other packages warn about other things than ours
        f"--junitxml={out / 'tests.xml'}",
        *folders,
        *extra,
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def measure_roofline(repetitions: int) -> dict[str, object]:
    """Device-to-device copy, read bandwidth, host transfers, bf16 GEMM peak and launch cost."""
    import torch

    device = torch.device("cuda", 0)
    free, total = torch.cuda.mem_get_info(device)
    size = min(COPY_BYTES, free // 4)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    words = source.view(torch.int32)
    host = torch.empty(256 * 1024**2, dtype=torch.uint8, pin_memory=True)
    on_device = torch.empty_like(host, device=device)
    copy_s = _median_s(partial(target.copy_, source), repetitions)
    read_s = _median_s(words.amax, repetitions)
    to_device_s = _median_s(lambda: on_device.copy_(host, non_blocking=True), repetitions)
    to_host_s = _median_s(lambda: host.copy_(on_device, non_blocking=True), repetitions)
    del source, target, words  # the matrix products want the memory
    gemm = {}
    for n in GEMM_SIZES:
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        gemm[str(n)] = 2 * n**3 / _median_s(lambda a=a, b=b: a @ b, repetitions) / 1e12
    tiny = torch.zeros(1, device=device)
    launch_s = _median_s(lambda: [tiny.add_(1) for _ in range(100)], repetitions) / 100
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "num_sms": properties.multi_processor_count,
        "memory_bytes": total,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "copy_gb_per_s": 2 * size / copy_s / 1e9,
        "read_gb_per_s": size / read_s / 1e9,
        "host_to_device_gb_per_s": host.numel() / to_device_s / 1e9,
        "device_to_host_gb_per_s": host.numel() / to_host_s / 1e9,
        "bf16_gemm_tflop_per_s": gemm,
        "bf16_gemm_peak_tflop_per_s": max(gemm.values()),
        "launch_us": launch_s * 1e6,
        "repetitions": repetitions,
    }


def _median_s(work: Callable[[], object], repetitions: int) -> float:
    """Median seconds of one call by CUDA events, after warm-up."""
    import torch

    for _ in range(3):
        work()
    times = []
    for _ in range(repetitions):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
