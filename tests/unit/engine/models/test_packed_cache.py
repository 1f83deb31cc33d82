"""The packed cache: what it gives is what packing gives; anything else in it is noticed and built again."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from tests.unit.engine.models.test_reader import CPU, checkpoint
from xllm.config.model_spec import read_model_spec
from xllm.engine.layers.build_context import build_context
from xllm.engine.models import load_model

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no compiler: nothing is packed")


def load(model: Path, cache: Path | None) -> dict[str, torch.Tensor]:
    loaded = load_model(read_model_spec(model), model, build_context(torch.bfloat16, CPU), packed_cache=cache)
    return {name: parameter.data.clone() for name, parameter in loaded.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def only_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    assert path.suffix == ".packed"
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    checkpoint(path, torch.bfloat16)
    return path


def warnings(caplog: Any) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_a_second_start_maps_what_the_first_has_packed(model: Path, tmp_path: Path, caplog: Any) -> None:
    cache, plain = tmp_path / "cache", load(model, None)
    assert same(load(model, cache), plain)
    before = only_file(cache).stat()
    with caplog.at_level(logging.INFO):
        assert same(load(model, cache), plain)
    assert any("checked in" in r.getMessage() for r in caplog.records) and not warnings(caplog)
    assert only_file(cache).stat().st_ino == before.st_ino, "it was not built again"


@pytest.mark.parametrize("where", [0.0, 0.00001, 0.3, 0.999999])
def test_one_flipped_bit_anywhere_is_noticed_and_built_again(
    model: Path, tmp_path: Path, caplog: Any, where: float
) -> None:
    cache, plain = tmp_path / "cache", load(model, None)
    load(model, cache)
    path = only_file(cache)
    data = bytearray(path.read_bytes())
    data[4096 + int((len(data) - 4097) * where)] ^= 4
    path.write_bytes(data)
    assert same(load(model, cache), plain)
    (said,) = warnings(caplog)
    assert "checksum" in said and str(path) in said
    assert same(load(model, cache), plain) and not warnings(caplog), "the new one is whole"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-4096],
        lambda data: data[:7],
        lambda data: b"",
        lambda data: b"\0" * 16 + data[16:],
        lambda data: data[:16] + b"[]" + data[18:],
        lambda data: data[:8] + b"\xff" * 8 + data[16:],
    ],
)
def test_a_damaged_file_is_built_again(model: Path, tmp_path: Path, caplog: Any, damage: Any) -> None:
    cache, plain = tmp_path / "cache", load(model, None)
    load(model, cache)
    path = only_file(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert same(load(model, cache), plain)
    (said,) = warnings(caplog)
    assert "damaged" in said
    load(model, cache)
    assert not warnings(caplog)


def test_a_changed_checkpoint_makes_it_stale(model: Path, tmp_path: Path, caplog: Any) -> None:
    cache = tmp_path / "cache"
    old = load(model, cache)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\x01\x40")
    os.utime(weights, ns=(1, 1))
    new = load(model, cache)
    assert not same(old, new) and same(new, load(model, None))
    assert "stale" in warnings(caplog)[0]
    only_file(cache)  # it has replaced the old one


def test_a_directory_that_cannot_be_written_does_not_stop_the_start(
    model: Path, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "file").write_text("")
    assert same(load(model, tmp_path / "file" / "cache"), load(model, None))
    (said,) = warnings(caplog)
    assert "not kept" in said


def test_a_failed_read_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    cache = tmp_path / "cache"

    def fail(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    spec = read_model_spec(model)
    with pytest.raises(KeyboardInterrupt):
        load_model(spec, model, build_context(torch.bfloat16, CPU), packed_cache=cache, progress=fail)
    assert list(cache.iterdir()) == [] and weights.read_bytes() == whole
