"""xTensor against block tables: system calls, taken-over pages, wasted tokens, memory of a first token, step time.

    python benchmarks/xtensor_bench.py [--json benchmarks/results/xtensor.json] [--quick]

latency     one page mapped (its memory new, or not), replaced, unmapped; and taken over, which only the planner notices
life        sequences come and go through the production brain with the real mapper: calls per sequence
waste       tokens of the last block of a sequence that nobody uses, and bytes for a first token
step        decode steps of a small model with dummy weights, layouts interleaved; medians
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.base.clock import MonotonicClock
from xllm.config.cache import CacheConfig
from xllm.config.model import ModelConfig
from xllm.config.pages import max_mappings, page_bytes_from
from xllm.config.runner import RunnerConfig
from xllm.config.scheduler import SchedulerConfig
from xllm.config.serve import EngineConfig
from xllm.engine.brain import build_brain
from xllm.engine.build import build_engine
from xllm.engine.cache.pages.placement import RangePlacement
from xllm.engine.memory.mapper import MemfdMapper
from xllm.engine.memory.page_map import PageMap, ThreadBackground
from xllm.engine.scheduler.limits import SchedulerLimits
from xllm.types.batch import BatchResult
from xllm.types.kv_layout import build_attention_layout
from xllm.types.pages import PageGeometry
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

KIB, MIB = 1024, 1024**2
# (layers, KV heads, head dim, bytes per number) of published models
MODELS = {"Qwen3-0.6B bf16": (28, 8, 128, 2), "Qwen3-8B bf16": (36, 8, 128, 2)}
TINY = {
    "architectures": ["Qwen3ForCausalLM"], "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "float32",
    "model_type": "qwen3", "attention_bias": False, "hidden_act": "silu", "eos_token_id": 0,
}  # fmt: skip


def measure_latency(page_bytes: int, count: int) -> dict[str, float]:
    """Medians in microseconds."""
    geometry = PageGeometry(
        page_bytes=page_bytes, tokens_per_page=16, pages_per_range=count, num_ranges=2, max_mappings=10**6
    )
    mapper = MemfdMapper(geometry, count)
    rows = {
        "map a new page": [_us(lambda i=i: mapper.map(0, i, i)) for i in range(count)],
        "map a used page": [_us(lambda i=i: mapper.map(1, i, count - 1 - i)) for i in range(count)],
        "replace": [_us(lambda i=i: mapper.map(1, i, i)) for i in range(count)],
        "unmap": [_us(lambda i=i: mapper.unmap(0, i)) for i in range(count)],
    }
    return {name: statistics.median(times) for name, times in rows.items()}


def _us(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e6


def measure_planning(count: int) -> dict[str, float]:
    """What taking over, or freshly mapping, a sequence's eight pages costs the planner; microseconds per page."""
    from xllm.engine.cache.kv_cache import KVCache

    layout = build_attention_layout(block_size=16, num_layers=1, num_kv_heads=1, head_dim=8, dtype="float32")
    geometry = PageGeometry(
        page_bytes=65536, tokens_per_page=16, pages_per_range=64, num_ranges=64, max_mappings=10**6
    )
    cache = KVCache(layout, [4096], enable_prefix_caching=False, pages=geometry)
    times: dict[str, list[float]] = {"fresh": [], "taken over": []}
    held = []
    for _ in range(64):
        tables = cache.new_tables()
        times["fresh"].append(_us(lambda t=tables: cache.try_admit(0, t, cache.no_hit, 127)) / 8)
        held.append(tables)
    for tables in held:
        cache.free(tables)
    for _ in range(count):
        tables = cache.new_tables()
        times["taken over"].append(_us(lambda t=tables: cache.try_admit(0, t, cache.no_hit, 127)) / 8)
        cache.free(tables)
    return {name: statistics.median(found) for name, found in times.items()}


def measure_life(*, caching: bool, num_requests: int, seed: int) -> dict[str, Any]:
    """Sequences with lognormal lengths and some shared beginnings, 32 at a time, in memory for about two thirds."""
    rng = random.Random(seed)
    layout = build_attention_layout(
        block_size=16, num_layers=4, num_kv_heads=4, head_dim=64, dtype="bfloat16"
    )
    page_bytes = layout.bytes_per_block()
    limits = SchedulerLimits(max_num_seqs=32, max_num_batched_tokens=1024, max_model_len=2048)
    num_pages = 32 * 24
    geometry = PageGeometry(
        page_bytes=page_bytes, tokens_per_page=16, pages_per_range=128, num_ranges=32, max_mappings=16_000
    )
    core = build_brain(
        layout=layout, num_blocks=[num_pages], limits=limits, vocab_size=32_000, clock=MonotonicClock(),
        enable_prefix_caching=caching, pages=geometry,
    )  # fmt: skip
    body = PageMap(MemfdMapper(geometry, num_pages), geometry, ThreadBackground())
    beginnings = [tuple(rng.randrange(32_000) for _ in range(200)) for _ in range(4)]
    for i in range(num_requests):
        own = tuple(rng.randrange(32_000) for _ in range(min(1500, int(rng.lognormvariate(5.0, 0.8))) + 1))
        prompt = rng.choice(beginnings) + own if i % 2 else own
        sampling = SamplingParams(max_tokens=min(300, int(rng.lognormvariate(4.0, 0.6))) + 1, ignore_eos=True)
        core.add(Request(id=f"r{i}", prompt_token_ids=prompt, seed=i, sampling=sampling))
    place_us, num_steps = [], 0
    while core.num_unfinished:
        batch = core.next_batch()
        assert batch is not None
        begin = time.perf_counter()
        body.place(batch)
        place_us.append((time.perf_counter() - begin) * 1e6)
        tokens = tuple((7,) if row.num_logits else () for row in batch.rows)
        core.on_result(BatchResult(step=batch.step, status="ok", tokens=tokens, epoch=batch.epoch))
        num_steps += 1
    body.wait()
    placement = core.cache.placement
    assert isinstance(placement, RangePlacement) and body.num_refused == body.num_repaired == 0
    return {
        "prefix_cache": caching,
        "requests": num_requests,
        "steps": num_steps,
        "preemptions": core.load().num_preemptions,
        "hit_tokens": core.load().prefix_hit_tokens,
        "map_calls_per_request": body.num_mapped / num_requests,
        "unmap_calls_per_request": body.num_unmapped / num_requests,
        "calls_ahead_share": body.num_ahead / max(1, body.num_mapped),
        "pages_taken_over_per_request": placement.num_rebound / num_requests,
        "pages_shared_per_request": placement.num_shared / num_requests,
        "place_us_median": statistics.median(place_us),
        "place_us_p99": sorted(place_us)[int(len(place_us) * 0.99)],
    }


def waste_table(max_map_count: int) -> list[dict[str, Any]]:
    """Arithmetic from the sizes that the configuration would choose."""
    rng = random.Random(0)
    lengths = [max(1, int(rng.lognormvariate(6.0, 1.0))) for _ in range(100_000)]
    rows = []
    for name, (layers, heads, dim, width) in MODELS.items():
        token = 2 * layers * heads * dim * width
        paged = 16
        for kv_bytes in (1 << 30, 16 << 30):
            page = page_bytes_from(0, token, 4096)
            most = max_mappings(max_map_count)
            while kv_bytes // page > most:
                page = page_bytes_from(page * -(-(kv_bytes // page) // most), token, 4096)
            size = page // token
            rows.append(
                {
                    "model": name,
                    "kv_gib": kv_bytes >> 30,
                    "token_kib": token / KIB,
                    "page_kib": page / KIB,
                    "tokens_per_page": size,
                    "wasted_tokens_xtensor": statistics.fmean(-n % size for n in lengths),
                    "wasted_tokens_paged_16": statistics.fmean(-n % paged for n in lengths),
                    "first_token_mib_xtensor": page / MIB,
                    "first_token_mib_paged_16": paged * token / MIB,
                    "first_token_mib_2mib_page_per_layer": 2 * layers * 2.0,
                }
            )
    return rows


def build_step_engine(folder: Path, layout: str, num_rows: int, length: int) -> Any:
    (folder / "config.json").write_text(json.dumps(TINY))
    config = EngineConfig(
        model=ModelConfig(model=str(folder), load_format="dummy", dtype="float32", max_model_len=length),
        cache=CacheConfig(kv_cache_memory_bytes=256 * MIB, kv_layout=layout),  # type: ignore[arg-type]
        scheduler=SchedulerConfig(max_num_seqs=num_rows, max_num_batched_tokens=max(1024, num_rows)),
        runner=RunnerConfig(device="cpu", num_threads=1),
    )
    return build_engine(config)


def measure_steps(num_rows: int, num_steps: int) -> dict[str, float]:
    """Median forward milliseconds of decode steps at 256 and more tokens per row, one step of each layout in turn."""
    engines, answers = {}, {}
    for layout in ("paged", "xtensor"):
        with tempfile.TemporaryDirectory() as folder:
            engines[layout] = build_step_engine(Path(folder), layout, num_rows, 512)
        answers[layout] = queue.SimpleQueue[BatchResult]()
        engines[layout].executor.start(answers[layout].put, lambda io: None)
        rng = random.Random(0)
        for i in range(num_rows):
            prompt = tuple(rng.randrange(4096) for _ in range(256))
            sampling = SamplingParams(temperature=0.0, max_tokens=num_steps + 2, ignore_eos=True)
            engines[layout].core.add(Request(id=f"r{i}", prompt_token_ids=prompt, seed=i, sampling=sampling))
    times: dict[str, list[float]] = {"paged": [], "xtensor": []}
    while all(engine.core.num_unfinished for engine in engines.values()):
        for layout, engine in engines.items():
            batch = engine.core.next_batch()
            engine.executor.submit(batch)
            result = answers[layout].get(timeout=600)
            engine.core.on_result(result)
            if len(batch.rows) == num_rows and batch.num_tokens == num_rows:
                times[layout].append(result.facts.forward_s * 1e3)
    for engine in engines.values():
        engine.executor.close()
    return {layout: statistics.median(found) for layout, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, to see that it runs")
    args = parser.parse_args()
    few = args.quick
    latency = {
        f"{size // KIB} KiB": measure_latency(size, 40 if few else 400)
        for size in (64 * KIB, 256 * KIB, 2 * MIB)
    }
    planning = measure_planning(100 if few else 2000)
    print("latency, us per page:")
    for size, row in latency.items():
        print(f"  {size:>9}: " + ", ".join(f"{name} {us:.1f}" for name, us in row.items()))
    print("  planner: " + ", ".join(f"{name} {us:.2f}" for name, us in planning.items()))
    lives = [measure_life(caching=c, num_requests=40 if few else 600, seed=1) for c in (False, True)]
    for life in lives:
        print(
            "life: "
            + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in life.items())
        )
    waste = waste_table(65530)
    for row in waste:
        print(
            "waste: "
            + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        )
    steps = {str(n): measure_steps(n, 6 if few else 60) for n in ((1, 4) if few else (1, 8, 32))}
    for num_rows, row in steps.items():
        print(f"decode of {num_rows} rows, forward ms: " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "latency_us": latency,
            "planner_us": planning,
            "life": lives,
            "waste": waste,
            "step_ms": steps,
        }
        args.json.write_text(json.dumps({"environment": describe(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
