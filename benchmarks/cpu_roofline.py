"""Where the time of a CPU step goes, part by part, and how far each step is from the machine's limits.

    python benchmarks/cpu_roofline.py [--threads N] [--rounds 7] [--layers 28] [--only TEXT] [--json FILE]

A Qwen3-0.6B-shaped model with random bfloat16 weights, one call per layer, as an engine runs it. For every case: the
whole step (layers and head), the products of each kind and the attention measured alone over the same weights and
caches, and what is left (norms, rotary, KV writes, activation, meeting at barriers). The limit of a step is the larger
of bytes / bandwidth (weights, and the KV its rows see) and FLOPs / peak. The bandwidth is that of a C program which
reads memory on all threads, run before and after every round; a round in which it moved by more than 15 % is
discarded and counted. The peak is the best rate of torch's packed oneDNN product of 512 x 4096 x 4096, not ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from msgspec.structs import replace

from benchmarks.cpu_kernels import BF16, BLOCK, CPU, build, spec_of
from benchmarks.cpu_peers.machine import Probe
from benchmarks.environment import describe
from xllm.base.malloc import keep_step_buffers
from xllm.engine.attention import NativePlanner
from xllm.engine.kernels.linear.native import linear
from xllm.engine.memory import KVPool
from xllm.engine.models import ModelInput, NullHooks
from xllm.engine.models.native_layers import NativeLayers
from xllm.engine.platform.native import native_library

MAX_DRIFT = 0.15


@dataclass(frozen=True)
class Case:
    """A step: ``batch`` sequences with ``new`` tokens each, which see ``length`` tokens."""

    batch: int
    new: int
    length: int

    @property
    def name(self) -> str:
        kind = "decode" if self.new == 1 else "prefill"
        return f"{kind} {self.batch} x {self.new} of {self.length}"


CASES = (
    Case(1, 1, 256), Case(4, 1, 256), Case(16, 1, 256), Case(16, 1, 1024), Case(64, 1, 256), Case(1, 1, 8192),
    Case(1, 128, 128), Case(1, 512, 512), Case(1, 2048, 2048), Case(1, 512, 8192),
)  # fmt: skip


class Model:
    """The model, and each of its parts as a function of a case."""

    def __init__(self, num_layers: int) -> None:
        self.spec = spec_of(num_layers)
        self.model, self.attention = build(self.spec, "auto")
        self.layers = NativeLayers(self.model, self.attention)

    def runs(self, case: Case) -> dict[str, Callable[[], Any]]:
        spec, rows = self.spec, case.batch * case.new
        blocks = -(-case.length // BLOCK)
        layout = spec.kv_layout(block_size=BLOCK, dtype="bfloat16")
        layout = replace(layout, order=self.attention.fastest_order(layout))
        pool = KVPool(layout, case.batch * blocks, CPU)
        for index in range(spec.num_layers):
            pool.layer(index).k.fill_(0.01)
            pool.layer(index).v.fill_(0.01)
        tables = np.arange(case.batch * blocks, dtype=np.int32).reshape(case.batch, blocks)
        at = np.arange(case.length - case.new, case.length)
        slots = (tables[:, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK).reshape(-1)
        planner = NativePlanner(block_size=BLOCK, num_kv_heads=spec.num_kv_heads, rows_per_token=None)
        metadata = planner.plan(
            np.full(case.batch, case.new), np.full(case.batch, case.length), tables, slots
        )
        inp = ModelInput(
            token_ids=torch.arange(rows) % 1000,
            positions=torch.from_numpy(np.tile(at, case.batch)),
            attention=metadata,
            logits_indices=torch.arange(case.new - 1, rows, case.new),
        )
        q = torch.randn(rows, spec.num_heads, spec.head_dim).to(BF16)
        k, v = (torch.randn(rows, spec.num_kv_heads, spec.head_dim).to(BF16) for _ in range(2))

        def whole() -> None:
            hidden = self.layers.forward(inp, pool, NullHooks())
            self.model.compute_logits(hidden[inp.logits_indices])

        def attend() -> None:
            for index in range(spec.num_layers):
                memory = pool.layer(index)
                self.attention.forward(q, k, v, memory, metadata, scale=spec.head_dim**-0.5, window=None)

        runs: dict[str, Callable[[], Any]] = {"whole": whole, "attention": attend}
        for name in ("qkv", "out", "gate_up", "down"):
            runs[name] = self._products(name, rows)
        hidden = torch.randn(case.batch, spec.hidden_size).to(BF16)
        runs["head"] = lambda: self.model.compute_logits(hidden)
        return runs

    def _products(self, name: str, rows: int) -> Callable[[], None]:
        linears = [
            getattr(layer.attention if name in ("qkv", "out") else layer.mlp, name)
            for layer in self.model.layers
        ]
        x = torch.randn(rows, linears[0].packed.num_in).to(BF16)

        def run() -> None:
            for item in linears:
                linear(x, item.packed, None)

        return run

    def limits(self, case: Case) -> tuple[float, float]:
        """(bytes read, FLOPs) of the case."""
        spec, rows = self.spec, case.batch * case.new
        head = spec.vocab_size * spec.hidden_size
        layers = spec.num_active_params - head
        weights = spec.num_active_params * 2
        kv = case.batch * case.length * spec.kv_bytes_per_token("bfloat16")
        seen = sum(range(case.length - case.new + 1, case.length + 1)) * case.batch
        flops = (
            2.0 * (layers * rows + head * case.batch)
            + 4.0 * spec.num_heads * spec.head_dim * spec.num_layers * seen
        )
        return float(weights + kv), flops


def gemm_peak(rounds: int = 12) -> float:
    """FLOP/s of torch's packed oneDNN product, the best of ``rounds``."""
    x, weight = torch.randn(512, 4096).to(BF16), torch.randn(4096, 4096).to(BF16)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 512)
    best = 0.0
    for _ in range(rounds):
        begin = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        best = max(best, 2.0 * 512 * 4096 * 4096 / (time.perf_counter() - begin))
    return best


def measure(model: Model, case: Case, rounds: int, probe: Probe) -> dict[str, Any]:
    """Medians over the kept rounds, in ms, and the shares of the limits."""
    runs = model.runs(case)
    for run in runs.values():
        run()
    kept: dict[str, list[float]] = {name: [] for name in runs}
    bandwidths, shares, peaks, discarded = [], [], [], 0
    bytes_read, flops = model.limits(case)
    while len(shares) < rounds and discarded < 4 * rounds:
        before, times = probe.gb_per_s(), {}
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            times[name] = time.perf_counter() - begin
        after = probe.gb_per_s()
        if abs(after - before) > MAX_DRIFT * min(before, after):
            discarded += 1
            continue
        bandwidth, peak = (before + after) / 2 * 1e9, gemm_peak(3)
        limit_s = max(bytes_read / bandwidth, flops / peak)
        for name, value in times.items():
            kept[name].append(value * 1e3)
        bandwidths.append(bandwidth / 1e9)
        peaks.append(peak / 1e12)
        shares.append(limit_s / times["whole"])
    if not shares:
        return {"discarded": discarded}
    parts = {name: statistics.median(values) for name, values in kept.items()}
    return {
        "ms": parts | {"rest": parts["whole"] - sum(v for n, v in parts.items() if n != "whole")},
        "GB read": bytes_read / 1e9,
        "GFLOP": flops / 1e9,
        "bandwidth GB/s": statistics.median(bandwidths),
        "peak TFLOP/s": statistics.median(peaks),
        "share of limit": statistics.median(shares),
        "GB/s": bytes_read / parts["whole"] / 1e6,
        "TFLOP/s": flops / parts["whole"] / 1e9,
        "bound by": "memory" if bytes_read / bandwidth > flops / peak else "arithmetic",
        "rounds": len(shares),
        "discarded": discarded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_step_buffers()  # as an engine does
    torch.set_num_threads(args.threads)
    library = native_library()
    if library is None:
        sys.exit("the CPU kernels cannot be built here")
    names = ("whole", "qkv", "attention", "out", "gate_up", "down", "head", "rest")
    results: dict[str, Any] = {}
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        probe, model = Probe(Path(folder)), Model(args.layers)
        print(f"{'case':28}" + "".join(f"{name:>10}" for name in names) + f"{'of limit':>10} bound by")
        for case in CASES:
            if args.only not in case.name:
                continue
            row = results[case.name] = measure(model, case, args.rounds, probe)
            if "ms" not in row:
                print(f"{case.name:28} no quiet round in {row['discarded']}")
                continue
            cells = "".join(f"{row['ms'][name]:10.2f}" for name in names)
            print(f"{case.name:28}{cells}{row['share of limit']:10.0%} {row['bound by']}", flush=True)
    environment = describe() | {"variant": library.variant, "threads": args.threads}
    print(json.dumps(environment))
    if args.json:
        args.json.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
