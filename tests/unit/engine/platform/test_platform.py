"""Platforms: names, facts, refusals."""

from __future__ import annotations

import pytest
import torch

from xllm.engine.platform import select_platform
from xllm.engine.platform.platform import torch_dtype
from xllm.errors import ConfigError


def test_cpu_facts() -> None:
    cpu = select_platform("cpu")
    assert cpu.kind == "cpu" and cpu.device.type == "cpu"
    assert 0 < cpu.free_memory_bytes <= cpu.total_memory_bytes
    cpu.synchronize()


@pytest.mark.parametrize("name", ["tpu", "cpu:1", "cuda:x", ""])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        select_platform(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_gpu() -> None:
    assert select_platform("auto").kind == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        select_platform("cuda")


def test_dtypes() -> None:
    assert torch_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="int3"):
        torch_dtype("int3")
