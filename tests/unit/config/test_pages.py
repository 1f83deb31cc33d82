"""Page sizes of layout xtensor: what is chosen, what is refused, and with which hint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.equivalence.engines import MACHINE
from xllm.config.cache import CacheConfig
from xllm.config.model import ModelConfig
from xllm.config.model_spec import ModelSpec, read_model_spec
from xllm.config.pages import check_page_bytes, max_mappings, page_bytes_from
from xllm.config.resolve import resolve
from xllm.config.resolved import ResolvedEngineConfig
from xllm.config.runner import RunnerConfig
from xllm.config.scheduler import SchedulerConfig
from xllm.config.serve import EngineConfig
from xllm.errors import ConfigError

MIB = 1024**2


@pytest.fixture(scope="module")
def spec(tiny_model_dir: Path) -> ModelSpec:
    return read_model_spec(tiny_model_dir)


def run(
    spec: ModelSpec, *, device: str = "cpu", max_map_count: int = 65530, **cache: Any
) -> ResolvedEngineConfig:
    config = EngineConfig(
        model=ModelConfig(model="m", dtype="float32", max_model_len=64),
        cache=CacheConfig(kv_layout="xtensor", **cache),
        scheduler=SchedulerConfig(max_num_seqs=8),
        runner=RunnerConfig(device=device),  # type: ignore[arg-type]
    )
    return resolve(config, spec, replace(MACHINE, max_map_count=max_map_count))


def test_a_page_holds_whole_tokens_of_all_layers_and_is_a_block(spec: ModelSpec) -> None:
    resolved = run(spec, kv_cache_memory_bytes=8 * MIB)
    pages, token = resolved.pages, spec.kv_bytes_per_token("float32")
    assert pages is not None
    assert pages.page_bytes % token == pages.page_bytes % 4096 == 0 and pages.page_bytes >= 65536
    assert pages.tokens_per_page * token == pages.page_bytes == resolved.kv_layout.bytes_per_block()
    assert resolved.block_size == pages.tokens_per_page
    assert resolved.num_blocks == 8 * MIB // pages.page_bytes
    assert pages.num_ranges == 8 and pages.pages_per_range == -(-64 // pages.tokens_per_page)
    assert "tokens" in resolved.reasons["cache.kv_page_bytes"].reason


def test_pages_grow_until_all_can_be_mapped(spec: ModelSpec) -> None:
    small = run(spec, kv_cache_memory_bytes=64 * MIB)
    large = run(spec, kv_cache_memory_bytes=64 * MIB, max_map_count=2000)
    assert small.pages is not None and large.pages is not None
    assert large.pages.max_mappings == max_mappings(2000) == (1000 - 8) // 2
    assert small.num_blocks > large.pages.max_mappings >= large.num_blocks
    assert large.pages.page_bytes % spec.kv_bytes_per_token("float32") == 0


@pytest.mark.parametrize(
    "page_bytes, why", [(4096, "at least"), (65536 + 512, "system's page"), (65536 + 4096, "of a token")]
)
def test_sizes_that_cannot_work_are_refused_with_one_that_does(
    page_bytes: int, why: str, spec: ModelSpec
) -> None:
    token = 24 * 1024
    with pytest.raises(ConfigError, match=why) as error:
        check_page_bytes(page_bytes, token, 4096)
    works = int(str(error.value).rpartition("--kv-page-bytes ")[2])
    check_page_bytes(works, token, 4096)
    assert works == page_bytes_from(page_bytes, token, 4096) >= page_bytes
    if page_bytes < 65536:
        with pytest.raises(ConfigError, match=why):
            run(spec, kv_page_bytes=page_bytes)


def test_more_pages_than_can_be_mapped_are_refused_with_a_size_that_works(spec: ModelSpec) -> None:
    auto = run(spec, kv_cache_memory_bytes=64 * MIB)
    assert auto.pages is not None
    said = {"kv_cache_memory_bytes": 64 * MIB, "kv_page_bytes": auto.pages.page_bytes, "max_map_count": 1000}
    with pytest.raises(ConfigError, match="can be mapped at once") as error:
        run(spec, **said)
    works = int(str(error.value).rpartition("--kv-page-bytes ")[2].split(",")[0])
    assert run(spec, **(said | {"kv_page_bytes": works})).num_blocks > 0
    with pytest.raises(ConfigError, match="--num-gpu-blocks-override 246"):
        run(spec, num_gpu_blocks_override=500, max_map_count=1000)


def test_more_sequences_than_mappings_are_refused(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match="can be mapped at once"):
        run(spec, max_map_count=30)


def test_a_gpu_has_no_virtual_ranges_yet(spec: ModelSpec) -> None:
    with pytest.raises(ConfigError, match="--kv-layout paged"):
        run(spec, device="cuda", kv_cache_memory_bytes=8 * MIB)


@pytest.mark.parametrize("bad", [{"kv_page_bytes": 0}, {"kv_page_bytes": -65536}])
def test_no_page_is_no_size(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="kv_page_bytes"):
        CacheConfig(**bad)  # type: ignore[arg-type]
