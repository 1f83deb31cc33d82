"""Where the time of an engine step goes: the production brain and local executor in one process, dummy weights.

Prints per number of running sequences the medians over decode steps of: planning and taking the result (brain),
preparing the inputs (runner), forward, sampling; *overhead* is all but forward and sampling. A busy machine shows in
the medians: run it alone.

    python benchmarks/step_times.py --shape tiny --rows 1,64,256
    python benchmarks/step_times.py --shape qwen3-0.6b --dtype bfloat16 --device cuda --json out.json
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from xllm.config.cache import CacheConfig  # noqa: E402
from xllm.config.model import ModelConfig  # noqa: E402
from xllm.config.runner import RunnerConfig  # noqa: E402
from xllm.config.scheduler import SchedulerConfig  # noqa: E402
from xllm.config.serve import EngineConfig  # noqa: E402
from xllm.engine.build import build_engine  # noqa: E402
from xllm.types.batch import Batch, BatchResult  # noqa: E402
from xllm.types.request import Request  # noqa: E402
from xllm.types.sampling import SamplingParams  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 2048,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    },
}
COLUMNS = ("brain", "prepare", "forward", "sample", "overhead", "step")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--rows", default="1,64,256", help="running sequences, comma separated")
    parser.add_argument("--steps", type=int, default=64, help="decode steps per run")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    print(f"{'rows':>5} " + " ".join(f"{name + ' ms':>12}" for name in COLUMNS) + f" {'output tok/s':>13}")
    results = []
    for num_rows in (int(n) for n in args.rows.split(",")):
        result = measure(args, num_rows)
        results.append(result)
        cells = " ".join(f"{result[name + '_ms']:12.3f}" for name in COLUMNS)
        print(f"{num_rows:5d} {cells} {result['output_tokens_per_s']:13.0f}", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "runs": results}) + "\n"
        )
    return 0


def measure(args: argparse.Namespace, num_rows: int) -> dict[str, Any]:
    """Medians over the steps in which every row decodes."""
    longest = args.prompt_tokens + args.steps + 8
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), SHAPES[args.shape])
        engine = build_engine(
            EngineConfig(
                model=ModelConfig(model=folder, load_format="dummy", dtype=args.dtype, max_model_len=longest),
                cache=CacheConfig(num_gpu_blocks_override=num_rows * (-(-longest // 16)) + 16, block_size=16),
                scheduler=SchedulerConfig(max_num_seqs=num_rows, max_num_batched_tokens=max(2048, num_rows)),
                runner=RunnerConfig(device=args.device, num_threads=args.num_threads),
            )
        )
    answers: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()
    engine.executor.start(answers.put, lambda io: None)
    rng = random.Random(0)
    for i in range(num_rows):
        prompt = tuple(rng.randrange(SHAPES[args.shape]["vocab_size"]) for _ in range(args.prompt_tokens))
        sampling = SamplingParams(temperature=args.temperature, max_tokens=args.steps, ignore_eos=True)
        engine.core.add(Request(id=f"r{i}", prompt_token_ids=prompt, seed=i, sampling=sampling))
    times: dict[str, list[float]] = {name: [] for name in COLUMNS}
    while engine.core.num_unfinished:
        begin_s = time.perf_counter()
        batch = engine.core.next_batch()
        planned_s = time.perf_counter()
        assert batch is not None, "the core has nothing to run"
        engine.executor.submit(batch)
        result = answers.get(timeout=600)
        answered_s = time.perf_counter()
        if result.status != "ok":
            raise RuntimeError(f"step {batch.step} failed: {result.error}")
        engine.core.on_result(result)
        end_s = time.perf_counter()
        if is_full_decode(batch, num_rows):
            facts = result.facts
            times["brain"].append(planned_s - begin_s + end_s - answered_s)
            times["prepare"].append(facts.prepare_s)
            times["forward"].append(facts.forward_s)
            times["sample"].append(facts.sample_s)
            times["step"].append(end_s - begin_s)
            times["overhead"].append(end_s - begin_s - facts.forward_s - facts.sample_s)
    engine.executor.close()
    medians = {f"{name}_ms": statistics.median(values) * 1e3 for name, values in times.items()}
    return {"rows": num_rows, **medians, "output_tokens_per_s": num_rows / medians["step_ms"] * 1e3}


def is_full_decode(batch: Batch, num_rows: int) -> bool:
    return len(batch.rows) == num_rows and batch.num_tokens == num_rows


def write_config(folder: Path, shape: dict[str, Any]) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    sys.exit(main())
