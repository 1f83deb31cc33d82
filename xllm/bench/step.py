"""`bench step`: what a decode step costs beside the model's own arithmetic.

Drives a real engine (brain, executor thread, runner, model) in this process, with N sequences decoding at once, and
splits each step into forward + lm_head, sampling, and everything else: planning, inputs, thread hand-over, outputs.
Steps run one at a time, also where the engine would plan ahead. A *shape* stands for a model that is not there: its
configuration with dummy weights.
"""

from __future__ import annotations

import json
import queue
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xllm.config.serve import EngineConfig
from xllm.engine.build import BuiltEngine, build_engine
from xllm.errors import ConfigError, InternalError
from xllm.types.batch import BatchResult
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

_STEP_TIMEOUT_S = 300.0

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
"""Qwen3 models by name: what their config.json says about sizes."""


def write_shape(shape: str, folder: Path) -> None:
    """Write a config.json of that shape: a model for ``--load-format dummy``."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        **SHAPES[shape],
    }
    (folder / "config.json").write_text(json.dumps(config))


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Medians over the measured decode steps, in milliseconds."""

    num_seqs: int
    num_steps: int
    step_ms: float
    forward_ms: float
    sample_ms: float
    plan_ms: float
    """EngineCore.next_batch."""
    prepare_ms: float
    """Row updates, inputs and results in the body."""
    outputs_ms: float
    """EngineCore.on_result."""
    overhead_ms: float
    """step - forward - sample."""
    overhead_p90_ms: float
    output_tokens_per_s: float
    """num_seqs over the median step."""
    device: str = "cpu"
    dtype: str = ""
    num_threads: int = 1
    """Of the forward, on a CPU."""


def measure_steps(
    config: EngineConfig,
    num_seqs: Sequence[int],
    *,
    input_len: int,
    num_steps: int,
    seed: int,
    temperature: float = 0.8,
) -> list[StepCosts]:
    """Medians for each batch size. Raises ConfigError when the engine cannot hold the largest one."""
    engine = build_engine(config)
    limit = engine.resolved.max_num_seqs
    if max(num_seqs) > limit:
        raise ConfigError(f"{max(num_seqs)} sequences, the engine runs {limit}", hint="raise --max-num-seqs")
    results: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()
    engine.executor.start(results.put, lambda _io: None)
    try:
        return [_measure(engine, results, n, input_len, num_steps, seed, temperature) for n in num_seqs]
    finally:
        engine.executor.close()


def _measure(
    engine: BuiltEngine,
    results: queue.SimpleQueue[BatchResult],
    num_seqs: int,
    input_len: int,
    num_steps: int,
    seed: int,
    temperature: float,
) -> StepCosts:
    core, executor = engine.core, engine.executor
    rng = np.random.default_rng(seed)
    for index in range(num_seqs):
        prompt = tuple(int(t) for t in rng.integers(0, core.vocab_size, input_len))
        sampling = SamplingParams(
            max_tokens=num_steps + 2 * num_seqs + 64, ignore_eos=True, temperature=temperature
        )
        core.add(Request(id=f"{num_seqs}-{index}", prompt_token_ids=prompt, seed=index, sampling=sampling))
    samples: list[tuple[float, ...]] = []
    while len(samples) < num_steps:
        began = time.perf_counter()
        batch = core.next_batch()
        planned = time.perf_counter()
        if batch is None:
            raise InternalError("the engine has nothing to run in the middle of a benchmark")
        executor.submit(batch)
        result = results.get(timeout=_STEP_TIMEOUT_S)
        answered = time.perf_counter()
        answers = core.on_result(result)
        ended = time.perf_counter()
        if result.status != "ok" or any(o.error for o in answers):
            raise InternalError(f"a benchmark step failed: {result.error}")
        if len(batch.rows) == num_seqs == batch.num_tokens and not batch.new_rows:
            f = result.facts
            samples.append(
                (ended - began, f.forward_s, f.sample_s, planned - began, f.prepare_s, ended - answered)
            )
    core.abort_all("the benchmark is over")
    columns = [[1e3 * value for value in column] for column in zip(*samples, strict=True)]
    overheads = sorted(step - forward - sample for step, forward, sample in zip(*columns[:3], strict=True))
    step, forward, sample, plan, prepare, outputs = (statistics.median(c) for c in columns)
    overhead, p90 = statistics.median(overheads), overheads[int(0.9 * (len(overheads) - 1))]
    return StepCosts(
        num_seqs,
        num_steps,
        step,
        forward,
        sample,
        plan,
        prepare,
        outputs,
        overhead,
        p90,
        output_tokens_per_s=1e3 * num_seqs / step,
        device=engine.resolved.device,
        dtype=engine.resolved.dtype,
        num_threads=engine.resolved.num_threads,
    )


def format_steps(costs: Sequence[StepCosts]) -> str:
    """A table, one row per batch size."""
    names = [n for n in asdict(costs[0]) if n not in ("num_steps", "device", "dtype", "num_threads")]
    widths = {n: max(12, len(n)) for n in names}
    lines = [" ".join(f"{n:>{widths[n]}}" for n in names)]
    for cost in costs:
        values = asdict(cost)
        cells = (f"{values[n]:.3f}" if isinstance(values[n], float) else f"{values[n]}" for n in names)
        lines.append(" ".join(f"{cell:>{widths[n]}}" for n, cell in zip(names, cells, strict=True)))
    return "\n".join(lines)
