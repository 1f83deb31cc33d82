"""The CPU kernels against torch's operations, in interleaved pairs: products, attention, sampling, and whole steps.

    python benchmarks/cpu_kernels.py [--threads 1] [--rounds 7] [--layers 28]
                                     [--only build,linear,attention,shared,moe,sampling,scoring,step,order]
                                     [--json benchmarks/results/cpu_kernels.json]

build      the library, from its sources, in every variant that this CPU runs.
linear     one projection of a 0.6B model in bfloat16, from packed weights: ours, torch's ``linear``, and torch's packed
           oneDNN; over a ring of weights larger than the caches.
attention  one layer, bfloat16, 16 query and 8 key/value heads of 128: ours over block tables, in pairs order where the
           CPU has it and in tokens order, and the reference (gathers).
           Keys and values pass through a ring larger than the caches. GB/s and TFLOP/s are ours, by wall time.
shared     the same for rows that share a prefix: read once, or by every row.
moe        one layer of 64 experts, 8 per token, 2048 wide, 768 inside, bfloat16: ours and the reference.
sampling   64 rows of 151,936 logits.
scoring    the same rows: log-probabilities of the sampled token and the best 20; penalties on 512 tokens each.
step       the layers of a Qwen3-0.6B-shaped model with random weights and its head: as one call per layer, operation
           by operation with native kernels, and by torch's operations.
order      what it costs that a token's result depends neither on its batch nor on how its prompt was cut: the layers
           with the library that serves, and with one built free of that: two accumulators per element where a step has
           one or two rows, attention without parts. Products of ``linear`` are the other half of the answer: oneDNN's
           may take another way for every number of rows, and ours may not.

A row shows medians over the rounds in ms, of wall time and of CPU time over all threads of this process, and the ratio
of the medians to ours (CPU time). On a machine with other work wall times measure that work; CPU times are the fair
comparison, and still include what others take of the caches and of the memory's bandwidth. The bandwidth probe (reads
400 MiB on the same threads) runs before and after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from msgspec.structs import replace

from benchmarks.environment import describe
from xllm.config.model_spec import ModelSpec, RopeSpec
from xllm.engine.attention import AttentionPlanner, NativeAttention, NativePlanner, ReferenceAttention
from xllm.engine.kernels import parse_kernels, select_kernels
from xllm.engine.kernels.linear.native import linear, pack_weight
from xllm.engine.kernels.moe import native as moe_native
from xllm.engine.kernels.moe import reference as moe_reference
from xllm.engine.kernels.paged_attention.native import KVStrides, StepRows, paged_attention
from xllm.engine.kernels.penalties import native as penalties_native
from xllm.engine.kernels.penalties import reference as penalties_reference
from xllm.engine.kernels.penalties.reference import PenalisedRow
from xllm.engine.kernels.sampling.native import sample_gumbel as native_sample
from xllm.engine.kernels.sampling.reference import sample_gumbel as reference_sample
from xllm.engine.kernels.scoring import native as scoring_native
from xllm.engine.kernels.scoring import reference as scoring_reference
from xllm.engine.layers.build_context import build_context
from xllm.engine.memory import KVPool, LayerKV
from xllm.engine.models import CausalLM, ModelInput, NullHooks, build_model
from xllm.engine.models.native_layers import NativeLayers
from xllm.engine.platform.native import NativeLibrary, native_library
from xllm.engine.platform.native_build import (
    build_library,
    default_cache_dir,
    read_cpu_flags,
    usable_variants,
)

CPU = torch.device("cpu")
BF16 = torch.bfloat16
BLOCK = 16
RING_BYTES = 120_000_000
"""Keys and values of so many bytes are gone from the caches when they are read again."""
Runs = Mapping[str, Callable[[], Any]]


def measure(runs: Runs, rounds: int, repeat: int = 1) -> dict[str, dict[str, float]]:
    """Median wall and CPU ms of each, taking turns; the order is reversed every other round."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for name in runs:
        runs[name]()
    for index in range(rounds):
        for name in list(runs) if index % 2 == 0 else list(runs)[::-1]:
            begin_wall, begin_cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                runs[name]()
            cpu[name].append((time.process_time() - begin_cpu) / repeat * 1e3)
            wall[name].append((time.perf_counter() - begin_wall) / repeat * 1e3)
    found = {n: {"wall_ms": statistics.median(wall[n]), "cpu_ms": statistics.median(cpu[n])} for n in runs}
    ours = found[next(iter(runs))]
    for row in found.values():
        row["ratio"] = row["cpu_ms"] / ours["cpu_ms"]
    return found


def probe(buffer: torch.Tensor) -> float:
    """GB/s of reading, median of 5 passes."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        buffer.sum()
        times.append(time.perf_counter() - begin)
    return buffer.numel() * 4 / statistics.median(times) / 1e9


def linears() -> Iterator[tuple[str, Runs, int]]:
    for num_out, num_in in ((4096, 1024), (6144, 1024), (1024, 3072)):
        count = max(2, int(160e6 / (2 * num_out * num_in)))
        weights = [torch.randn(num_out, num_in).to(BF16) for _ in range(count)]
        packed = [pack_weight(w) for w in weights]
        onednn = [torch.ops.mkldnn._reorder_linear_weight(w, 32) for w in weights]
        for rows in (1, 4, 16, 64, 512):
            x = torch.randn(rows, num_in).to(BF16)
            ring = range(count if rows < 64 else 2)

            def ours(x: torch.Tensor = x, packed: Any = packed, ring: range = ring) -> None:
                for i in ring:
                    linear(x, packed[i], None)

            def torchs(x: torch.Tensor = x, weights: Any = weights, ring: range = ring) -> None:
                for i in ring:
                    torch.nn.functional.linear(x, weights[i])

            def packs(x: torch.Tensor = x, onednn: Any = onednn, ring: range = ring) -> None:
                for i in ring:
                    torch.ops.mkldnn._linear_pointwise(x, onednn[i], None, "none", [], "")

            runs = {"native": ours, "torch": torchs, "oneDNN packed": packs}
            yield f"linear {num_in}->{num_out} x{len(ring)}, {rows} rows", runs, 1


def attentions() -> Iterator[tuple[str, Runs, int]]:
    heads, kv_heads, dim = 16, 8, 128
    plain = select_kernels("cpu", parse_kernels("reference"))
    library = native_library()
    has_dot = library is not None and library.has_dot_bf16
    for batch, new, length in (
        (1, 1, 256),
        (1, 1, 1024),
        (1, 1, 8192),
        (16, 1, 256),
        (16, 1, 1024),
        (16, 1, 8192),
        (1, 512, 512),
        (1, 512, 4096),
        (1, 2048, 2048),
        (1, 8192, 8192),
    ):
        blocks = -(-length // BLOCK)
        layer_bytes = 4 * batch * blocks * BLOCK * kv_heads * dim
        ring = [
            [torch.randn(batch * blocks, kv_heads, BLOCK, dim).to(BF16) for _ in range(2)]
            for _ in range(min(28, max(1, RING_BYTES // layer_bytes)) if new == 1 else 1)
        ]
        tables = np.random.default_rng(0).permutation(batch * blocks).astype(np.int32).reshape(batch, blocks)
        queries, lengths = np.full(batch, new), np.full(batch, length)
        at = np.arange(length - new, length)
        slots = (tables[:, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK).reshape(-1)
        q = torch.randn(batch * new, heads, dim).to(BF16)
        k, v = (torch.randn(batch * new, kv_heads, dim).to(BF16) for _ in range(2))
        runs: dict[str, Callable[[], Any]] = {}
        places = NativePlanner(block_size=BLOCK, num_kv_heads=kv_heads, rows_per_token=None)
        native = NativeAttention(select_kernels(), block_size=None, rows_per_token=None)
        for name, planner, backend, is_paired in (
            ("native", places, native, has_dot),
            ("native, tokens order", places, native, False),
            ("reference", reference_planner(kv_heads, dim), ReferenceAttention(plain), False),
        ):
            metadata = planner.plan(queries, lengths, tables, slots)

            def run(
                backend: Any = backend,
                metadata: Any = metadata,
                q: Any = q,
                k: Any = k,
                v: Any = v,
                ring: Any = ring,
                is_paired: bool = is_paired,
            ) -> None:
                for pools in ring:
                    kv = LayerKV(*pools, is_paired)
                    backend.forward(q, k, v, kv, metadata, scale=dim**-0.5, window=None)

            if name != "reference" or length <= 4096:
                runs[name] = run
        yield f"attention {batch} x {new} new of {length}, {len(ring)} layers", runs, 1


def attention_speed(name: str, row: Mapping[str, float]) -> str:
    """GB/s of keys and values of decodes, TFLOP/s of chunks."""
    batch, _, new, _, _, length, layers, _ = name.removeprefix("attention ").split()
    keys, queries, size = int(length.rstrip(",")), int(new), int(batch) * int(layers)
    if queries == 1:
        return f"{size * keys * 8 * 128 * 4 / row['wall_ms'] / 1e6:.1f} GB/s"
    pairs = queries * (keys - queries) + queries * (queries + 1) / 2
    return f"{size * pairs * 16 * 128 * 4 / row['wall_ms'] / 1e9:.3f} TFLOP/s"


def shared_prefixes() -> Iterator[tuple[str, Runs, int]]:
    heads, kv_heads, dim, batch = 16, 8, 128, 32
    for shared, own in ((1024, 64), (256, 256)):
        first, blocks = shared // BLOCK, (shared + own) // BLOCK
        count = first + batch * (blocks - first)
        ring = [[torch.randn(count, kv_heads, BLOCK, dim).to(BF16) for _ in range(2)] for _ in range(8)]
        order = np.random.default_rng(0).permutation(count).astype(np.int32)
        tables = np.empty((batch, blocks), dtype=np.int32)
        tables[:, :first], tables[:, first:] = order[:first], order[first:].reshape(batch, -1)
        q = torch.randn(batch, heads, dim).to(BF16)

        def run(
            key: int, on: bool, q: Any = q, ring: Any = ring, tables: Any = tables, s: int = shared + own
        ) -> None:
            starts, lengths = np.arange(batch + 1), np.full(batch, s)
            rows = StepRows(starts, lengths, tables, key, on)
            strides = KVStrides(BLOCK, kv_heads * BLOCK * dim, BLOCK * dim, dim)
            for pools in ring:
                paged_attention(q, tuple(pools), strides, kv_heads, rows, dim**-0.5, None)

        runs = {
            "read once": lambda run=run, s=shared: run(s, True),
            "by every row": lambda run=run, s=shared: run(s + 1, False),
        }
        yield f"attention {batch} x 1 new of {shared} shared + {own}, 8 layers", runs, 1


def experts() -> Iterator[tuple[str, Runs, int]]:
    count, inner, width = 64, 768, 2048
    shapes = ((count, width), (count, 2 * inner, width), (count, width, inner))
    weights = [(torch.randn(shape) / 40).to(BF16) for shape in shapes]
    packed = [moe_native.pack_experts(weight) for weight in weights]
    for rows in (1, 16, 512):
        x = torch.randn(rows, width).to(BF16)
        runs = {
            "native": lambda x=x: moe_native.moe(x, *packed, 8, True),
            "reference": lambda x=x: moe_reference.moe(x, *weights, 8, True),
        }
        yield f"experts, {rows} rows", runs, 1


def reference_planner(kv_heads: int, dim: int) -> AttentionPlanner:
    return AttentionPlanner(
        block_size=BLOCK, num_kv_heads=kv_heads, head_dim=dim, dtype=BF16, windows=(None,), device=CPU,
        max_gather_bytes=8 * 2**20,
    )  # fmt: skip


def samplings() -> Iterator[tuple[str, Runs, int]]:
    rows, vocab = 64, 151936
    logits = torch.randn(rows, vocab) * 0.5
    base = {
        "temperature": torch.ones(rows), "top_k": torch.zeros(rows, dtype=torch.int64), "top_p": torch.ones(rows),
        "min_p": torch.zeros(rows), "seeds": torch.arange(rows), "choices": torch.zeros(rows, dtype=torch.int64),
        "positions": torch.arange(rows),
    }  # fmt: skip
    for name, asked in (
        ("no filter", {}),
        ("top_p 0.95, flat", {"top_p": torch.full((rows,), 0.95)}),
        ("top_k 40", {"top_k": torch.full((rows,), 40)}),
        ("top_k 40, top_p 0.95", {"top_k": torch.full((rows,), 40), "top_p": torch.full((rows,), 0.95)}),
        ("min_p 0.1", {"min_p": torch.full((rows,), 0.1)}),
    ):
        args = base | asked
        runs = {
            "native": lambda args=args: native_sample(logits, **args),
            "reference": lambda args=args: reference_sample(logits, **args),
        }
        yield f"sampling {rows} rows, {name}", runs, 1


def scorings() -> Iterator[tuple[str, Runs, int]]:
    rows, vocab = 64, 151936
    logits, tokens = torch.randn(rows, vocab), torch.arange(rows)
    draw = np.random.default_rng(0)
    penalised = [
        PenalisedRow(
            i, draw.permutation(vocab)[:512], draw.integers(0, 3, 512).astype(np.float32), 0.1, 0.2, 1.1
        )
        for i in range(rows)
    ]
    best = (None, tokens, [20] * rows)
    for name, ours, theirs, args in (
        ("log-probabilities and the best 20", scoring_native.score, scoring_reference.score, best),
        ("penalties", penalties_native.penalise, penalties_reference.penalise, (penalised,)),
    ):
        runs = {
            "native": lambda f=ours, args=args: f(logits, *args),
            "reference": lambda f=theirs, args=args: f(logits, *args),
        }
        yield f"scoring {rows} rows, {name}", runs, 1


def spec_of(layers: int) -> ModelSpec:
    return ModelSpec(
        architecture="Qwen3ForCausalLM", hidden_size=1024, intermediate_size=3072, num_layers=layers, num_heads=16,
        num_kv_heads=8, head_dim=128, vocab_size=151936, max_position=40960, rms_norm_eps=1e-6,
        rope=RopeSpec(theta=1e6), tie_word_embeddings=True, has_qk_norm=True, windows=(None,) * layers,
    )  # fmt: skip


def build(spec: ModelSpec, kernels: str) -> tuple[CausalLM, Any]:
    context = build_context(BF16, CPU, kernels=parse_kernels(kernels))
    model = build_model(spec, context).eval()
    tile = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(BF16)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(1.0)
        else:
            flat = parameter.data.view(-1)
            for begin in range(0, len(flat), len(tile)):
                part = flat[begin : begin + len(tile)]
                part.copy_(tile[: len(part)]).mul_(parameter.shape[1] ** -0.5)
        assert name
    model.pack()
    return model, context.attention


def steps(layers: int) -> Iterator[tuple[str, Runs, int]]:
    spec = spec_of(layers)
    (fast, attention), (slow, _) = build(spec, "auto"), build(spec, "reference")
    whole = NativeLayers(fast, attention)
    for batch, new, length in ((1, 1, 256), (16, 1, 256), (1, 512, 512)):
        blocks = -(-length // BLOCK)
        pools = [
            KVPool(spec.kv_layout(block_size=BLOCK, dtype="bfloat16"), batch * blocks, CPU) for _ in range(2)
        ]
        tables = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
        at = np.arange(length - new, length)
        slots = (tables[:, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK).reshape(-1)
        planners = (
            NativePlanner(block_size=BLOCK, num_kv_heads=8, rows_per_token=None),
            reference_planner(8, 128),
        )
        inputs = [
            ModelInput(
                token_ids=torch.arange(batch * new) % 1000,
                positions=torch.from_numpy(np.tile(at, batch)),
                attention=planner.plan(np.full(batch, new), np.full(batch, length), tables, slots),
                logits_indices=torch.arange(new - 1, batch * new, new),
            )
            for planner in planners
        ]

        def native(i: Any = inputs[0], p: Any = pools[0]) -> torch.Tensor:
            return fast.compute_logits(whole.forward(i, p, NullHooks())[i.logits_indices])

        def operations(i: Any = inputs[0], p: Any = pools[0]) -> torch.Tensor:
            return fast.compute_logits(fast(i, p)[i.logits_indices])

        def reference(i: Any = inputs[1], p: Any = pools[1]) -> torch.Tensor:
            return slow.compute_logits(slow(i, p)[i.logits_indices])

        runs = {"one call per layer": native, "native operations": operations, "reference": reference}
        yield f"step of {layers} layers and head: {batch} x {new} new of {length}", runs, 1


FREE_ORDER = ("CHAINS=2", "PART=1073741824")
"""What the kernels are built with to be free of the order that makes results the same."""


def orders(layers: int) -> Iterator[tuple[str, Runs, int]]:
    serving = native_library()
    assert serving is not None
    path = build_library(serving.variant, cache_dir=default_cache_dir(), definitions=FREE_ORDER)
    spec = spec_of(layers)
    model, attention = build(spec, "auto")
    fixed = NativeLayers(model, attention)
    free = NativeLayers(model, attention, library=NativeLibrary(path, serving.variant))
    planner = NativePlanner(block_size=BLOCK, num_kv_heads=8, rows_per_token=None)
    for batch, new, length in (
        (1, 1, 256),
        (2, 1, 256),
        (16, 1, 256),
        (1, 1, 8192),
        (4, 1, 4096),
        (1, 512, 512),
    ):
        blocks = -(-length // BLOCK)
        layout = spec.kv_layout(block_size=BLOCK, dtype="bfloat16")
        pool = KVPool(replace(layout, order=attention.fastest_order(layout)), batch * blocks, CPU)
        for index in range(layers):
            for tensor in (pool.layer(index).k, pool.layer(index).v):
                tensor.normal_()
        tables = np.arange(batch * blocks, dtype=np.int32).reshape(batch, blocks)
        at = np.arange(length - new, length)
        slots = (tables[:, at // BLOCK].astype(np.int64) * BLOCK + at % BLOCK).reshape(-1)
        step = ModelInput(
            token_ids=torch.arange(batch * new) % 1000,
            positions=torch.from_numpy(np.tile(at, batch)),
            attention=planner.plan(np.full(batch, new), np.full(batch, length), tables, slots),
            logits_indices=torch.arange(new - 1, batch * new, new),
        )
        runs = {
            name: lambda way=way, step=step, pool=pool: way.forward(step, pool, NullHooks())
            for name, way in (("fixed order", fixed), ("free order", free))
        }
        first, second = (run() for run in runs.values())
        is_same = torch.equal(
            first, second
        )  # of steps that the choice does not concern: what differs is noise
        assert is_same == (batch == 16), "the other build is another one"
        name = f"order, {layers} layers: {batch} x {new} new of {length}"
        yield name + (" (same code)" if is_same else ""), runs, 1


def build_seconds() -> dict[str, dict[str, float]]:
    """Seconds of a build from nothing, by variant: by the clock and of the processor; one process, one core."""
    found = {}
    for variant in usable_variants(read_cpu_flags()):
        with tempfile.TemporaryDirectory() as directory:
            begin_s, begin = time.perf_counter(), os.times()
            build_library(variant, cache_dir=Path(directory))
            end = os.times()
            cpu_s = end.children_user + end.children_system - begin.children_user - begin.children_system
            found[variant] = {"wall_s": time.perf_counter() - begin_s, "cpu_s": cpu_s}
    return found


def show(row: Mapping[str, float]) -> str:
    return f"wall {row['wall_ms']:9.3f}  cpu {row['cpu_ms']:9.3f} ms  x{row['ratio']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--only", default="build,linear,attention,shared,moe,sampling,scoring,step,order")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    library = native_library()
    if library is None:
        sys.exit("the CPU kernels cannot be built here")
    parts = {
        "linear": linears,
        "attention": attentions,
        "shared": shared_prefixes,
        "moe": experts,
        "scoring": scorings,
        "sampling": samplings,
        "step": lambda: steps(args.layers),
        "order": lambda: orders(args.layers),
    }
    wanted = args.only.split(",")
    build_s = build_seconds() if "build" in wanted else {}
    for variant, seconds in build_s.items():
        print(f"{variant}: built in {seconds['wall_s']:.1f} s, {seconds['cpu_s']:.1f} s of CPU", flush=True)
    buffer = torch.ones(100 * 2**20)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for part in (part for part in wanted if part != "build"):
            before = probe(buffer)
            for name, runs, repeat in parts[part]():
                results[name] = measure(runs, args.rounds, repeat)
                for kind, row in results[name].items():
                    speed = attention_speed(name, row) if part == "attention" else ""
                    print(f"{name:52} {kind:18} {show(row)} {speed}", flush=True)
            after = probe(buffer)
            results[f"{part}: bandwidth before and after"] = [before, after]
            print(f"{part}: bandwidth {before:.0f} -> {after:.0f} GB/s, load {os.getloadavg()[0]:.1f}")
    environment = describe() | {
        "variant": library.variant,
        "threads": args.threads,
        "build_s": build_s,
        "load_after": os.getloadavg()[0],
    }
    print(json.dumps(environment))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": environment, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
