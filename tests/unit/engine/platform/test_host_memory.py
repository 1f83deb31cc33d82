from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xllm.engine.platform.host_memory import untouched_bytes

MIB = 1024 * 1024


def own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_it_is_zeros_that_do_not_exist_until_they_are_touched() -> None:
    # Freed memory that an allocator would hand out again, and clear.
    freed = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(16)]
    del freed
    before = own_bytes()
    memory = [untouched_bytes(64 * MIB + 8) for _ in range(8)]
    assert own_bytes() - before < 16 * MIB
    memory[3][5 * MIB] = 7
    assert own_bytes() - before < 32 * MIB
    assert int(memory[3].max()) == 7 and int(memory[2].sum()) == 0
    assert memory[3].shape == (64 * MIB + 8,) and memory[3].view(torch.float32).is_contiguous()


def test_too_much_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        untouched_bytes(1 << 62)
