from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.model_dirs import GIB, QWEN3_06B, make_spec
from xllm.config.load import load_arguments
from xllm.config.machine_facts import GpuFacts, MachineFacts
from xllm.config.model_spec import ModelSpec
from xllm.config.resolve import resolve
from xllm.config.resolved import ResolvedEngineConfig
from xllm.errors import ConfigError

MIB = 1024**2


def machine(
    available: int = 8 * GIB, *, gpu: GpuFacts | None = None, flags: str = "avx512_bf16"
) -> MachineFacts:
    return MachineFacts(
        num_cores=4,
        memory_total_bytes=max(available, 16 * GIB),
        memory_available_bytes=available,
        cpu_flags=frozenset(flags.split()),
        gpu=gpu,
    )


H200 = GpuFacts(name="H200", total_bytes=140 * GIB, free_bytes=139 * GIB, capability=(9, 0))


def decide(spec: ModelSpec, facts: MachineFacts, **arguments: object) -> ResolvedEngineConfig:
    loaded = load_arguments(arguments)
    return resolve(loaded.engine(), spec, facts, sources=loaded.sources)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return make_spec(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return make_spec(tmp_path_factory.mktemp("qwen"), QWEN3_06B)


def test_every_auto_is_decided_with_a_reason(small: ModelSpec) -> None:
    resolved = decide(small, machine())
    assert (resolved.device, resolved.dtype, resolved.num_threads) == ("cpu", "bfloat16", 1)
    assert (resolved.max_model_len, resolved.max_num_seqs, resolved.max_num_batched_tokens) == (
        2048,
        128,
        1024,
    )
    assert set(resolved.reasons) == {
        "runner.device",
        "runner.num_threads",
        "runner.cpu_set",
        "runner.graphs",
        "model.dtype",
        "model.max_model_len",
        "scheduler.max_num_seqs",
        "scheduler.max_num_batched_tokens",
        "scheduler.async_scheduling",
        "cache.kv_cache_memory_bytes",
    }
    assert all(decision.reason for decision in resolved.decisions)


def test_small_matrices_are_not_shared_between_threads(small: ModelSpec, qwen: ModelSpec) -> None:
    assert "too small to share" in decide(small, machine()).reasons["runner.num_threads"].reason
    assert decide(qwen, machine(16 * GIB)).num_threads == 4
    assert decide(small, machine(), num_threads=3).num_threads == 3
    assert decide(small, machine()).num_wide_threads == 4  # long prompts
    assert decide(small, machine(), num_threads=1).num_wide_threads == 1
    assert decide(qwen, machine(16 * GIB)).num_wide_threads == 4
    assert decide(small, machine(gpu=H200)).num_threads == 4
    assert decide(small, machine(), executor="timed:instant").num_threads == 4


def test_steps_in_flight(small: ModelSpec) -> None:
    assert decide(small, machine()).pipeline_depth == 2  # one thread of four cores
    assert decide(small, machine(), num_threads=4).pipeline_depth == 1
    assert decide(small, machine(gpu=H200)).pipeline_depth == 2
    assert decide(small, machine(), executor="timed:instant").pipeline_depth == 2
    assert decide(small, machine(), async_scheduling=True).pipeline_depth == 2
    said = decide(small, machine(gpu=H200), async_scheduling=False)
    assert said.pipeline_depth == 1 and "scheduler.async_scheduling" not in said.reasons


def test_what_was_said_is_not_decided(small: ModelSpec) -> None:
    resolved = decide(
        small, machine(), device="cpu", dtype="float32", max_model_len=100, max_num_seqs=3, num_threads=1,
        max_num_batched_tokens=7, kv_cache_memory_bytes="64MiB", block_size=32,
        async_scheduling=False, enforce_eager=True, cpu_set="off",
    )  # fmt: skip
    assert resolved.decisions == ()
    assert (
        resolved.num_blocks == 64 * MIB // small.kv_layout(block_size=32, dtype="float32").bytes_per_block()
    )


def test_kv_is_all_that_could_be_used_when_memory_is_plenty(small: ModelSpec) -> None:
    resolved = decide(small, machine(64 * GIB))
    assert resolved.num_blocks == 128 * 2048 // 16


def test_kv_is_half_of_what_is_left_when_it_is_not(qwen: ModelSpec) -> None:
    resolved = decide(qwen, machine(6 * GIB))
    assert resolved.memory.weights_bytes == qwen.num_params * 2
    block_bytes = resolved.kv_layout.bytes_per_block()
    assert 0 <= resolved.memory.left_bytes / 2 - resolved.memory.kv_bytes < block_bytes
    assert resolved.max_model_len == resolved.num_blocks * 16 < 40960
    assert "KV memory can hold" in resolved.reasons["model.max_model_len"].reason


def test_a_length_asked_for_gets_its_blocks_before_half_is_kept_free(qwen: ModelSpec) -> None:
    facts = machine(6 * GIB)
    longest = decide(qwen, facts).max_model_len
    resolved = decide(qwen, facts, max_model_len=longest + 1000, max_num_seqs=8)
    assert resolved.num_blocks * 16 >= longest + 1000


@pytest.mark.parametrize(
    ("flags", "checkpoint", "device", "expected"),
    [
        ("avx512_bf16", "bfloat16", "cpu", "bfloat16"),
        ("avx512_bf16", "float16", "cpu", "bfloat16"),
        ("avx2", "bfloat16", "cpu", "float32"),
        ("avx2", "float32", "cpu", "float32"),
        ("avx2", "float16", "cuda", "float16"),
        ("avx2", "bfloat16", "cuda", "bfloat16"),
    ],
)
def test_dtype(tmp_path: Path, flags: str, checkpoint: str, device: str, expected: str) -> None:
    spec = make_spec(tmp_path, torch_dtype=checkpoint)
    facts = machine(gpu=H200 if device == "cuda" else None, flags=flags)
    assert decide(spec, facts).dtype == expected


def test_gpu_budget_is_the_share_asked_for(qwen: ModelSpec) -> None:
    resolved = decide(qwen, machine(gpu=H200), gpu_memory_utilization=0.5)
    assert resolved.device == "cuda"
    assert resolved.memory.budget_bytes == 70 * GIB
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == (256, 8192)
    assert resolved.memory.kv_bytes > 60 * GIB


def test_budget_is_what_others_leave_of_a_shared_gpu(qwen: ModelSpec) -> None:
    busy = GpuFacts(name="H200", total_bytes=140 * GIB, free_bytes=20 * GIB)
    assert decide(qwen, machine(gpu=busy)).memory.budget_bytes == 20 * GIB


def test_timed_executor_needs_no_memory(qwen: ModelSpec) -> None:
    resolved = decide(qwen, machine(MIB), executor="timed:profile.json")
    assert (resolved.device, resolved.max_model_len) == ("cpu", 40960)
    assert resolved.num_blocks == 65_536


def test_small_step_budget_lowers_the_running_limit(small: ModelSpec) -> None:
    assert decide(small, machine(), max_num_batched_tokens=7).max_num_seqs == 7


def test_without_chunked_prefill_a_step_holds_a_prompt(small: ModelSpec) -> None:
    assert decide(small, machine(), enable_chunked_prefill=False).max_num_batched_tokens == 2048


def test_settings_without_effect_are_warned_about(small: ModelSpec) -> None:
    assert decide(small, machine()).warnings == ()
    (warning,) = decide(small, machine(), gpu_memory_utilization=0.5).warnings
    assert "gpu_memory_utilization" in warning


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"device": "cuda"}, "--device cpu"),
        ({"max_model_len": 4096}, "--max-model-len 2048"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 64}, "--max-num-batched-tokens 2048"),
        ({"num_gpu_blocks_override": 64, "kv_cache_memory_bytes": "1GiB"}, "give one of them"),
        (
            {"num_gpu_blocks_override": 4, "max_model_len": 100},
            "--max-model-len 64 or --num-gpu-blocks-override 7",
        ),
        ({"kv_cache_memory_bytes": "1MiB", "max_model_len": 2048}, "--kv-cache-memory-bytes 4MiB"),
        ({"kv_cache_memory_bytes": "100GiB"}, "KV is too big"),
        ({"num_gpu_blocks_override": 10**7}, "--num-gpu-blocks-override"),
    ],
)
def test_impossible_combinations(small: ModelSpec, arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        decide(small, machine(), **arguments)


def test_all_failed_checks_are_reported_together(small: ModelSpec) -> None:
    with pytest.raises(ConfigError) as caught:
        decide(small, machine(), device="cuda", max_model_len=9999)
    assert "2 problems" in str(caught.value)


@pytest.mark.parametrize(
    ("available_mib", "arguments", "term"),
    [
        (600, {}, "weights are too big"),
        (2100, {"dtype": "float32"}, "weights are too big"),
        (1700, {}, "activations are too big"),
        (4000, {"kv_cache_memory_bytes": "9GiB"}, "KV is too big"),
    ],
)
def test_out_of_memory_names_the_term(
    qwen: ModelSpec, available_mib: int, arguments: dict[str, object], term: str
) -> None:
    with pytest.raises(ConfigError, match=term):
        decide(qwen, machine(available_mib * MIB), **arguments)


def flags_of(hint: str) -> dict[str, object]:
    """The flags of a hint as arguments; of alternatives the first."""
    words = hint.split(" or ")[0].removeprefix("use ").split()
    assert len(words) % 2 == 0
    return {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }


@settings(max_examples=100, deadline=None)
@given(
    available_mib=st.integers(1300, 9000),
    kv=st.sampled_from([None, "16MiB", "1GiB", "6GiB"]),
    blocks=st.sampled_from([None, None, 3, 5000]),
    length=st.sampled_from([None, 50, 5000, 40960]),
    tokens=st.sampled_from([None, 64, 8192, 200_000]),
    dtype=st.sampled_from(["auto", "float32"]),
    is_chunked=st.booleans(),
)
def test_hints_work(
    qwen: ModelSpec,
    available_mib: int,
    kv: str | None,
    blocks: int | None,
    length: int | None,
    tokens: int | None,
    dtype: str,
    is_chunked: bool,
) -> None:
    """Following the hints, one after another, ends in a configuration that resolves, or in "free memory"."""
    arguments: dict[str, object] = {
        "kv_cache_memory_bytes": kv if blocks is None else None,
        "num_gpu_blocks_override": blocks,
        "max_model_len": length,
        "max_num_batched_tokens": tokens,
        "dtype": dtype,
        "enable_chunked_prefill": is_chunked,
    }
    for _ in range(8):
        try:
            resolved = decide(qwen, machine(available_mib * MIB), **arguments)
        except ConfigError as error:
            hints = re.findall(r"hint: (.*?)\)?$", str(error), flags=re.MULTILINE)
            assert hints, f"no hint: {error}"
            if any("free memory" in hint for hint in hints):
                assert available_mib < (2860 if dtype == "float32" else 2000)  # weights, reserve, a few MiB
                return
            for hint in hints:
                arguments |= flags_of(hint)
        else:
            assert resolved.memory.kv_bytes <= resolved.memory.left_bytes
            assert resolved.num_blocks * 16 >= resolved.max_model_len
            return
    pytest.fail(f"hints lead nowhere: {arguments}")
