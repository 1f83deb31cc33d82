"""Law 6: nothing accepted is ignored. Every option must be read somewhere outside the configuration itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import xllm
from xllm.config.load import Schema

PACKAGE = Path(xllm.__file__).parent
# Options whose only meaning is decided inside the configuration, with the reason.
DECIDED_IN_CONFIG = {
    "cache.kv_layout": "becomes pages",
    "cache.kv_page_bytes": "becomes pages",
    "cache.gpu_memory_utilization": "becomes num_blocks",
    "cache.kv_cache_memory_bytes": "becomes num_blocks",
    "cache.num_gpu_blocks_override": "becomes num_blocks",
    "scheduler.async_scheduling": "becomes pipeline_depth",
    "runner.enforce_eager": "becomes graphs = off",
}


def attributes_read() -> set[str]:
    names = set()
    for path in PACKAGE.rglob("*.py"):
        if PACKAGE / "config" not in path.parents:
            names |= {
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
    return names


@pytest.fixture(scope="module")
def read() -> set[str]:
    return attributes_read()


@pytest.mark.parametrize("key", sorted(set(Schema().by_key) - set(DECIDED_IN_CONFIG)))
def test_option_is_read(key: str, read: set[str]) -> None:
    name = key.partition(".")[2]
    assert {name, {"served_model_name": "served_model_names"}.get(name, name)} & read, f"nobody reads {key}"


def test_exceptions_exist() -> None:
    assert set(DECIDED_IN_CONFIG) <= set(Schema().by_key)
