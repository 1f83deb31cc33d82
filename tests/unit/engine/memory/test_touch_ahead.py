"""TouchAhead: how far it goes, that contents stay, and that the system really has the pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from xllm.engine.memory import KVPool
from xllm.engine.memory.touch_ahead import TouchAhead
from xllm.engine.platform.host_memory import HUGE_PAGE_BYTES, untouched_bytes
from xllm.types.batch import Batch, BatchRow
from xllm.types.kv_layout import build_attention_layout

MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted in /proc")


def resident_bytes(tensor: torch.Tensor) -> int:
    """Of the mapping that holds the tensor's first byte."""
    inside, begin = False, tensor.data_ptr()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(" ", 1)[0]
        if "-" in first and not first.endswith(":"):
            low, high = (int(x, 16) for x in first.split("-"))
            inside = low <= begin < high
        elif inside and line.startswith("Rss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no such mapping")


def run(ahead: TouchAhead) -> int:
    count = 0
    while ahead.touch():
        count += 1
    return count


def test_an_idle_engine_keeps_memory_ahead_of_what_is_in_use() -> None:
    block_bytes, num_blocks = 64 * 1024, 1024  # 32 blocks in a huge page
    tensor = untouched_bytes(block_bytes * num_blocks).view(num_blocks, block_bytes)
    before = resident_bytes(tensor)
    ahead = TouchAhead([tensor], 100)
    assert run(ahead) == 4  # pieces of 32 blocks
    assert ahead.num_touched_bytes == 4 * HUGE_PAGE_BYTES
    assert resident_bytes(tensor) - before >= 4 * HUGE_PAGE_BYTES
    assert run(ahead) == 0
    ahead.saw(20)
    assert run(ahead) == 0  # 121 blocks are wanted, 128 are there
    tensor[40] = 7
    ahead.saw(40)
    assert run(ahead) == 1 and bool((tensor[40] == 7).all())
    ahead.saw(900)  # a burst: what it has used is there already
    assert run(ahead) == 4 and ahead.num_touched_bytes == 9 * HUGE_PAGE_BYTES
    assert resident_bytes(tensor) - before < 20 * HUGE_PAGE_BYTES
    ahead.saw(1023)
    assert run(ahead) == 0


def test_nothing_is_touched_when_nothing_is_asked_for() -> None:
    tensor = untouched_bytes(4 * MIB).view(64, -1)
    ahead = TouchAhead([tensor], 0)
    ahead.saw(10)
    assert run(ahead) == 0 and ahead.num_touched_bytes == 0


def test_a_pool_learns_from_batches_and_touches_every_layer() -> None:
    layout = build_attention_layout(
        block_size=16, num_layers=2, num_kv_heads=4, head_dim=64, dtype="bfloat16"
    )
    pool = KVPool(layout, 4096, torch.device("cpu"), touch_ahead_tokens=16 * 256)
    assert pool.tend()
    while pool.tend():
        pass
    first = pool.touch_ahead.num_touched_bytes
    assert first == 256 * layout.bytes_per_block()
    pool.place(Batch(step=1, rows=(BatchRow(0, 0, 1, ((300,),)),)))
    while pool.tend():
        pass
    assert pool.touch_ahead.num_touched_bytes >= first + 256 * layout.bytes_per_block()
