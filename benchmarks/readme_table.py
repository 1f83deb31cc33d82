"""The README's benchmark table: the bundled demo model behind `xllm serve`, driven over HTTP by `xllm bench serve`.

    python benchmarks/readme_table.py [--runs 3] [--json benchmarks/results/readme_table.json]

Per workload the median over runs; the server is started once and warmed up. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.bench.startup import free_port

# name: prompts, input tokens, output tokens, concurrency
WORKLOADS = {
    "1 stream, 128 in / 128 out": (8, 128, 128, 1),
    "16 streams, 256 in / 128 out": (48, 256, 128, 16),
    "64 streams, 64 in / 64 out": (256, 64, 64, 64),
}
XLLM = [sys.executable, "-m", "xllm.cli.main"]


def bench(port: int, workload: tuple[int, int, int, int], seed: int, out: Path) -> dict[str, float]:
    prompts, input_len, output_len, concurrency = workload
    command = [
        *XLLM, "bench", "serve", "--port", str(port), "--num-prompts", str(prompts), "--seed", str(seed),
        "--random-input-len", str(input_len), "--random-output-len", str(output_len), "--ignore-eos",
        "--max-concurrency", str(concurrency), "--save-result", "--result-filename", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    result: dict[str, float] = json.loads(out.read_text())
    if result["failed"]:
        raise SystemExit(f"{result['failed']} requests failed")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    port = free_port()
    server = subprocess.Popen([*XLLM, "serve", "--port", str(port)], stderr=subprocess.DEVNULL)
    rows = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            bench(port, (8, 64, 16, 8), 999, out)  # warm-up; waits until the server is ready
            for name, workload in WORKLOADS.items():
                runs = [bench(port, workload, seed, out) for seed in range(args.runs)]
                keys = (
                    "output_throughput",
                    "total_token_throughput",
                    "median_ttft_ms",
                    "p99_ttft_ms",
                    "median_tpot_ms",
                )
                rows[name] = {key: statistics.median(run[key] for run in runs) for key in keys}
    finally:
        server.terminate()
        server.wait(timeout=60)
    print("| workload | output tok/s | TTFT median / p99 | TPOT median |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        ttft = f"{row['median_ttft_ms']:.0f} / {row['p99_ttft_ms']:.0f} ms"
        print(f"| {name} | {row['output_throughput']:,.0f} | {ttft} | {row['median_tpot_ms']:.1f} ms |")
    environment = describe()
    print(f"\n{environment}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
