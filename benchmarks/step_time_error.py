"""How well step times are predicted: the learned roofline on a real engine, on load it was not fitted to.

    python benchmarks/step_time_error.py [--json benchmarks/results/step_time_error.json]

Engines in this process, one step at a time: the bundled demo model on the CPU, a random model of eight layers on the
CPU, and a timed engine (cpu-0.6b) whose model of time starts from a prior that is three times off. The fit sees
``--steps`` steps of one load (short prompts, up to 16 sequences) and is then frozen; the held-out load has longer
prompts in chunks, other batch sizes and other lengths. *frozen*: the fit from the first load only; *online*: it goes on
learning, each prediction made before its step. Errors are |predicted / measured - 1|.

``--clock cpu`` measures a step of a CPU model by the process's CPU time on one thread instead of the wall: on a machine
that others use, too, waiting for a core is no property of the step.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import describe
from xllm.bench.step import SHAPES, write_shape
from xllm.config.cache import CacheConfig
from xllm.config.model import ModelConfig
from xllm.config.runner import RunnerConfig
from xllm.config.scheduler import SchedulerConfig
from xllm.config.serve import EngineConfig, ServerConfig
from xllm.engine.build import BuiltEngine, build_engine
from xllm.perf.learned import LearnedStepTime
from xllm.perf.step_time import StepShape, load_profile, shape_of
from xllm.types.batch import BatchResult
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

DEMO = Path(__file__).resolve().parent.parent / "xllm" / "assets" / "demo_model"
EIGHT_LAYERS = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192,
}  # fmt: skip


Clock = Callable[[], float]


@dataclass(frozen=True)
class Load:
    """Prompts and outputs uniform in these ranges; the number of sequences changes every 40 steps."""

    prompts: tuple[int, int]
    outputs: tuple[int, int]
    max_seqs: int


TRAIN, HELD_OUT = Load((4, 120), (4, 40), 16), Load((40, 480), (2, 80), 24)


def steps(
    engine: BuiltEngine, load: Load, count: int, seed: int, clock: Clock
) -> Iterator[tuple[StepShape, float]]:
    """Run ``count`` steps of a load; yields their shapes and how long they lasted, hand-over included."""
    core, rng = engine.core, random.Random(seed)
    answers: queue.SimpleQueue[BatchResult] = ANSWERS
    target = 1
    for number in range(count):
        if number % 40 == 0:
            target = rng.randint(1, load.max_seqs)
        while core.num_unfinished < target:
            prompt = tuple(rng.randrange(1, core.vocab_size) for _ in range(rng.randint(*load.prompts)))
            sampling = SamplingParams(max_tokens=rng.randint(*load.outputs), ignore_eos=True, temperature=0.0)
            name = f"{seed}-{number}-{core.num_unfinished}"
            core.add(Request(id=name, prompt_token_ids=prompt, seed=1, sampling=sampling))
        batch = core.next_batch()
        assert batch is not None
        shape = shape_of((r.start, r.num_new_tokens) for r in batch.rows)
        began_s = clock()
        engine.executor.submit(batch)
        result = answers.get(timeout=120)
        lasted_s = clock() - began_s
        assert result.status == "ok", result.error
        core.on_result(result)
        yield shape, lasted_s
    core.abort_all("over")
    core.reset_prefix_cache()


ANSWERS: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()


def measure(
    name: str, config: EngineConfig, model: LearnedStepTime | None, num_steps: int, clock: Clock
) -> dict[str, Any]:
    engine = build_engine(config)
    engine.core.depth = 1
    engine.executor.start(ANSWERS.put, lambda _io: None)
    try:
        for _ in steps(engine, TRAIN, 40, 1, clock):
            pass  # first-touch costs belong to nobody
        learned = model or LearnedStepTime(engine.core.times.prior)  # type: ignore[attr-defined]
        for shape, lasted_s in steps(engine, TRAIN, num_steps, 2, clock):
            learned.observe(shape, lasted_s)
        frozen = LearnedStepTime(learned.prior, learned.factors)
        prior = LearnedStepTime(learned.prior)
        errors: dict[str, list[float]] = {"prior": [], "frozen": [], "online": []}
        lasted = []
        for shape, lasted_s in steps(engine, HELD_OUT, num_steps, 3, clock):
            for kind, by in (("prior", prior), ("frozen", frozen), ("online", learned)):
                errors[kind].append(abs(by.predict(shape) / lasted_s - 1))
            learned.observe(shape, lasted_s)
            lasted.append(lasted_s)
    finally:
        engine.executor.close()
    return {
        "engine": name,
        "steps": num_steps,
        "clock": "cpu" if clock is time.process_time else "wall",
        "step_ms_median": statistics.median(lasted) * 1e3,
        "step_ms_range": [min(lasted) * 1e3, max(lasted) * 1e3],
        "factors": list(learned.factors),
        **{f"median_error_{kind}": statistics.median(values) for kind, values in errors.items()},
        **{f"p90_error_{kind}": statistics.quantiles(values, n=10)[-1] for kind, values in errors.items()},
    }


def config_of(model: str, executor: str, load_format: str = "auto") -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(model=model, load_format=load_format, dtype="float32", max_model_len=640),  # type: ignore[arg-type]
        cache=CacheConfig(num_gpu_blocks_override=2048, block_size=16, enable_prefix_caching=False),
        scheduler=SchedulerConfig(
            max_num_seqs=32, max_num_batched_tokens=256, step_time_cache=False, async_scheduling=False
        ),
        runner=RunnerConfig(device="cpu", num_threads=1),
        server=ServerConfig(executor=executor),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        SHAPES["eight-layers"] = EIGHT_LAYERS
        write_shape("eight-layers", Path(folder))
        truth = load_profile("cpu-0.6b")
        wrong = replace(truth, peak_flops=truth.peak_flops / 3, bandwidth_bytes_s=truth.bandwidth_bytes_s * 3)
        for name, config, model in (
            ("timed cpu-0.6b, prior 3x off", config_of(folder, "timed:cpu-0.6b", "dummy"), LearnedStepTime(wrong)),
            ("demo model, CPU", config_of(str(DEMO), "local"), None),
            ("eight layers, CPU", config_of(folder, "local", "dummy"), None),
        ):  # fmt: skip
            clock = time.process_time if args.clock == "cpu" and model is None else time.perf_counter
            row = measure(name, config, model, args.steps, clock)
            rows.append(row)
            print(
                f"{name:>30}: step {row['step_ms_median']:.2f} ms; median error prior"
                f" {row['median_error_prior']:.1%}, frozen {row['median_error_frozen']:.1%}, online"
                f" {row['median_error_online']:.1%} (p90 {row['p90_error_online']:.1%})",
                flush=True,
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"environment": describe(), "engines": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
