"""How many threads a forward should have: step times of models of growing size, with one thread and with all cores.

    python benchmarks/thread_count.py [--rounds 5] [--busy 0 2] [--json benchmarks/results/thread_count.json]

Per figure: the median over rounds of the median forward of a decode step, and the least forward seen (bfloat16, dummy
weights; the least is what a quiet machine would show). A child process per round and setting, by turns: OpenMP reads
its environment once. ``--busy N`` adds N processes that only burn time: what a machine looks like that does other
things, too. The rules this decided are in xllm/config/resolve.py and xllm/base/openmp.py.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.engine.build import BuiltEngine
from xllm.types.batch import BatchResult
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

ROOT = Path(__file__).resolve().parent.parent
# hidden size, MLP size, layers, heads, key/value heads, head size
SIZES = {
    "64x2": (64, 128, 2, 4, 2, 16),
    "256x6": (256, 768, 6, 4, 2, 64),
    "512x4": (512, 1536, 4, 8, 4, 64),
    "1024x4": (1024, 3072, 4, 16, 8, 128),
    "2048x2": (2048, 6144, 2, 16, 8, 128),
}
NUM_SEQS = (1, 32)
NUM_STEPS, PROMPT_TOKENS = 30, 32
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "one": (1, {}),
    "all": (os.cpu_count() or 1, {}),
    "all passive": (os.cpu_count() or 1, PASSIVE),
    "all short spin": (os.cpu_count() or 1, {"GOMP_SPINCOUNT": "2000"}),
}


def layer_bytes(size: tuple[int, ...]) -> int:
    """Bytes of one layer's matrices in bfloat16."""
    hidden, mlp, _, heads, kv_heads, head = size
    return 2 * (hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * mlp)


def measure(num_threads: int, dtype: str) -> dict[str, dict[str, list[float]]]:
    """In a child: median and least forward milliseconds by size and number of sequences."""
    from xllm.bench.step import SHAPES, write_shape
    from xllm.config.cache import CacheConfig
    from xllm.config.model import ModelConfig
    from xllm.config.runner import RunnerConfig
    from xllm.config.scheduler import SchedulerConfig
    from xllm.config.serve import EngineConfig
    from xllm.engine.build import build_engine

    found: dict[str, dict[str, list[float]]] = {}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name, size in SIZES.items():
        sizes = dict(zip((*names, "num_key_value_heads", "head_dim"), size, strict=True))
        SHAPES[name] = sizes | {"vocab_size": 2048}
        with tempfile.TemporaryDirectory() as folder:
            write_shape(name, Path(folder))
            config = EngineConfig(
                model=ModelConfig(model=folder, load_format="dummy", dtype=dtype, max_model_len=512),  # type: ignore[arg-type]
                cache=CacheConfig(num_gpu_blocks_override=2048),
                scheduler=SchedulerConfig(max_num_seqs=max(NUM_SEQS), async_scheduling=False),
                runner=RunnerConfig(device="cpu", num_threads=num_threads),
            )
            engine = build_engine(config)
        answers: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()
        engine.executor.start(answers.put, lambda io: None)
        found[name] = {str(n): decode(engine, answers, n) for n in NUM_SEQS}
        engine.executor.close()
    return found


def decode(engine: BuiltEngine, answers: queue.SimpleQueue[BatchResult], num_seqs: int) -> list[float]:
    """Median and least forward of NUM_STEPS decode steps, milliseconds."""
    core = engine.core
    sampling = SamplingParams(max_tokens=NUM_STEPS + 2 * num_seqs, ignore_eos=True, temperature=0.0)
    for i in range(num_seqs):
        prompt = tuple((7 * i + j) % 2048 for j in range(PROMPT_TOKENS))
        core.add(Request(id=f"{num_seqs}-{i}", prompt_token_ids=prompt, seed=i, sampling=sampling))
    times: list[float] = []
    while len(times) < NUM_STEPS:
        batch = core.next_batch()
        assert batch is not None
        engine.executor.submit(batch)
        result = answers.get(timeout=300)
        core.on_result(result)
        if len(batch.rows) == num_seqs == batch.num_tokens and not batch.new_rows:
            times.append(1e3 * result.facts.forward_s)
    core.abort_all("measured")
    return [statistics.median(times), min(times)]


def run_child(setting: str, dtype: str) -> dict[str, Any]:
    num_threads, environ = SETTINGS[setting]
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(num_threads), "--dtype", dtype],
        env={**os.environ, "OMP_NUM_THREADS": str(num_threads), **environ},
        capture_output=True, text=True, check=True, timeout=600, cwd=ROOT,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Processes that burn time."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.dtype)))
        return 0
    tables = {}
    for num_busy in args.busy:
        with busy(num_busy):
            rounds = [
                {name: run_child(name, args.dtype) for name in args.settings} for _ in range(args.rounds)
            ]
        tables[str(num_busy)] = table = {
            size: {
                seqs: {
                    name: [
                        round(statistics.median(r[name][size][seqs][i] for r in rounds), 4) for i in (0, 1)
                    ]
                    for name in args.settings
                }
                for seqs in map(str, NUM_SEQS)
            }
            for size in SIZES
        }
        print(f"{num_busy} busy processes; median forward ms (least)")
        for size, by_seqs in table.items():
            for seqs, cells in by_seqs.items():
                texts = [f"{name} {cells[name][0]:.3f} ({cells[name][1]:.3f})" for name in args.settings]
                print(
                    f"{size:>8} {layer_bytes(SIZES[size]) / 2**20:7.2f} MiB/layer {seqs:>3} seqs  "
                    + "  ".join(texts),
                    flush=True,
                )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        layers = {name: layer_bytes(size) for name, size in SIZES.items()}
        result = {"environment": describe(), "layer_bytes": layers, "busy": tables}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
