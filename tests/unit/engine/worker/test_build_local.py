from __future__ import annotations

import json
import queue
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.batches import HandBrain, make_request
from tests.fakes.compiler import HAS_COMPILER
from xllm.config.cache import CacheConfig
from xllm.config.machine_facts import MachineFacts
from xllm.config.model import ModelConfig
from xllm.config.model_spec import read_model_spec
from xllm.config.resolve import resolve
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.runner import RunnerConfig
from xllm.config.serve import EngineConfig
from xllm.engine.build import EXECUTORS, build_local_executor
from xllm.errors import ConfigError, ModelError
from xllm.types.batch import BatchResult

MACHINE = MachineFacts(num_cores=1, memory_total_bytes=2**32, memory_available_bytes=2**32)


def resolved(
    path: Path, *, load_format: str = "dummy", device: str = "cpu", seed: int = 0
) -> ResolvedEngineConfig:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 97,
        "max_position_embeddings": 128,
    }
    (path / "config.json").write_text(json.dumps(config))
    said = EngineConfig(
        model=ModelConfig(model=str(path), load_format=load_format, seed=seed),  # type: ignore[arg-type]
        cache=CacheConfig(block_size=4, num_gpu_blocks_override=64),
        runner=RunnerConfig(device=device, num_threads=1),  # type: ignore[arg-type]
    )
    return resolve(said, read_model_spec(path), MACHINE)


def first_tokens(config: ResolvedEngineConfig) -> tuple[tuple[int, ...], ...]:
    executor, _ = build_local_executor(config)
    results: queue.SimpleQueue[BatchResult] = queue.SimpleQueue()
    executor.start(results.put, lambda io: None)
    brain = HandBrain(4)
    for row in range(3):
        brain.introduce(row, make_request(f"r{row}", range(row + 1, 20)))
    executor.submit(brain.batch({0: None, 1: None, 2: None}))
    result = results.get(timeout=200)
    executor.close()
    assert result.status == "ok", result.error
    return result.tokens


def test_dummy_weights_need_no_checkpoint_and_follow_the_seed(tmp_path: Path) -> None:
    assert first_tokens(resolved(tmp_path, seed=1)) == first_tokens(resolved(tmp_path, seed=1))
    assert first_tokens(resolved(tmp_path, seed=1)) != first_tokens(resolved(tmp_path, seed=2))


def test_facts_say_what_was_allocated(tmp_path: Path) -> None:
    config = resolved(tmp_path)
    executor, facts = build_local_executor(config)
    executor.close()
    assert facts.num_blocks == 64 and facts.layout == config.kv_layout
    assert facts.vocab_size == 97 and facts.max_model_len == 128
    planned = config.spec.weight_bytes("float32")
    assert (
        planned <= facts.weights_bytes < 2 * planned
    )  # packed matrices are padded to 64 rows, which shows when tiny
    assert facts.kv_bytes == 64 * config.kv_layout.bytes_per_block()


def test_batch_invariance_is_a_promise_or_a_refusal(tmp_path: Path) -> None:
    config = replace(resolved(tmp_path), batch_invariant=True)
    if not HAS_COMPILER:
        pytest.skip("no C++ compiler")
    build_local_executor(config)[0].close()
    for changes in ({"kernels": "reference"}, {"kernels": "linear=reference"}, {"dtype": "float16"}):
        with pytest.raises(ConfigError, match="--batch-invariant"):
            build_local_executor(replace(config, **changes))


def test_missing_weights_name_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        build_local_executor(resolved(tmp_path, load_format="auto"))


def test_an_unknown_executor_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="unknown executor"):
        EXECUTORS.load("remote")


def test_the_table_of_executors_does_not_load_torch() -> None:
    code = "import sys, xllm.engine.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0
