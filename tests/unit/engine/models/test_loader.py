"""Loading: shards, casts, and every damage named by file and tensor."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from xllm.config.model_spec import read_model_spec
from xllm.engine.kernels import parse_kernels
from xllm.engine.layers.build_context import build_context
from xllm.engine.models import CausalLM, build_model, load_model
from xllm.engine.models.safetensors import SafetensorsFile
from xllm.errors import ModelError

CONFIG: dict[str, Any] = dict(
    architectures=["Qwen3ForCausalLM"],
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    vocab_size=32,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
CPU = torch.device("cpu")


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16), "model.norm.weight": (16,)}
    for i in range(2):
        p = f"model.layers.{i}"
        shapes |= {
            f"{p}.input_layernorm.weight": (16,),
            f"{p}.post_attention_layernorm.weight": (16,),
            f"{p}.self_attn.q_proj.weight": (16, 16),
            f"{p}.self_attn.k_proj.weight": (8, 16),
            f"{p}.self_attn.v_proj.weight": (8, 16),
            f"{p}.self_attn.o_proj.weight": (16, 16),
            f"{p}.self_attn.q_norm.weight": (8,),
            f"{p}.self_attn.k_norm.weight": (8,),
            f"{p}.mlp.gate_proj.weight": (24, 16),
            f"{p}.mlp.up_proj.weight": (24, 16),
            f"{p}.mlp.down_proj.weight": (16, 24),
        }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(directory: Path, weights: dict[str, torch.Tensor], num_shards: int = 1, **config: Any) -> Path:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if num_shards == 1:
        save_file(weights, directory / "model.safetensors")
        return directory
    weight_map = {}
    for i in range(num_shards):
        file = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = {n: t for j, (n, t) in enumerate(weights.items()) if j % num_shards == i}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def load(directory: Path, dtype: torch.dtype = torch.float32, **kwargs: Any) -> CausalLM:
    return load_model(
        read_model_spec(directory),
        directory,
        build_context(dtype, CPU, kernels=parse_kernels("reference")),
        **kwargs,
    )


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_lands_in_its_place(tmp_path: Path, num_shards: int, dtype: torch.dtype) -> None:
    weights = tensors()
    model = load(write(tmp_path, weights, num_shards), dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    for source in model.sources():
        assert torch.equal(source.target, weights[source.name].to(dtype)), source.name
    qkv = model.layers[1].attention.qkv.weight
    names = [f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkv"]
    assert torch.equal(qkv, torch.cat([weights[n] for n in names]).to(dtype))


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load(write(tmp_path, tensors()), progress=lambda done, total: calls.append((done, total)))
    total = sum(t.numel() * 4 for t in tensors().values())
    assert calls[0] == (0, total) and calls[-1] == (total, total)
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    weights = tensors()
    del weights["lm_head.weight"]
    model = load(write(tmp_path, weights, tie_word_embeddings=True))
    assert model.head is model.embedding
    assert (
        load(write(tmp_path, tensors(), tie_word_embeddings=True)).head is not None
    )  # a redundant copy is fine


def test_layer_ranges_hold_their_part(tmp_path: Path) -> None:
    directory = write(tmp_path, tensors())
    first, second = load(directory, layer_range=(0, 1)), load(directory, layer_range=(1, 2))
    whole = {s.name for s in load(directory).sources()}
    parts = [{s.name for s in m.sources()} for m in (first, second)]
    assert parts[0] | parts[1] == whole and not parts[0] & parts[1]
    assert first.norm is None and second.embedding is None


def damaged(weights: dict[str, torch.Tensor], **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    out = {**weights, **{k: v for k, v in changes.items() if v is not None}}
    return {k: v for k, v in out.items() if not (k in changes and changes[k] is None)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.norm.weight": None}, ["model.norm.weight", "missing"]),
        ({"model.extra": torch.zeros(2)}, ["model.safetensors", "model.extra", "unexpected"]),
        (
            {"model.layers.0.mlp.up_proj.weight": torch.zeros(24, 8)},
            ["model.safetensors", "model.layers.0.mlp.up_proj.weight", "[24, 8]", "[24, 16]"],
        ),
        ({"model.norm.weight": torch.zeros(16, dtype=torch.int8)}, ["model.norm.weight", "I8"]),
        (
            {"model.layers.2.input_layernorm.weight": torch.zeros(16)},
            ["model.layers.2.input_layernorm.weight"],
        ),
    ],
)
def test_wrong_tensors(tmp_path: Path, changes: dict[str, torch.Tensor | None], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load(write(tmp_path, damaged(tensors(), **changes)))
    for word in words:
        assert word in str(caught.value)


def test_truncated_shard(tmp_path: Path) -> None:
    write(tmp_path, tensors(), num_shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"(?s)model-00002-of-00002.*truncated.*download"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": 1 }',
    ],
)
def test_damaged_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "entry",
    [
        dict(dtype="F32", shape=[2], data_offsets=[0, 4]),
        dict(dtype="F32", shape=[2], data_offsets=[-8, 0]),
        dict(dtype="F32", shape=[-2, -1], data_offsets=[0, 8]),
        dict(dtype="F32", shape=[2], data_offsets=[8, 0]),
        dict(dtype="F32", shape="x", data_offsets=[0, 8]),
        dict(shape=[2], data_offsets=[0, 8]),
    ],
)
def test_lying_entries(tmp_path: Path, entry: dict[str, Any]) -> None:
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(ModelError, match="'a'"):
        SafetensorsFile(path)


def test_missing_shard(tmp_path: Path) -> None:
    write(tmp_path, tensors(), num_shards=2)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        load(tmp_path)


def test_index_that_lies(tmp_path: Path) -> None:
    write(tmp_path, tensors(), num_shards=2)
    index = tmp_path / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"]["model.ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"model.ghost"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ModelError, match="plain file name"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "word"), [(None, "download"), ("pytorch_model.bin", "pickled"), ("m.gguf", "GGUF")]
)
def test_no_weights(tmp_path: Path, file: str | None, word: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    if file:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=word):
        load(tmp_path)


def test_registry_knows_every_family() -> None:
    from xllm.config.model_spec import FAMILIES
    from xllm.engine.models import MODEL_TABLE

    assert set(FAMILIES) <= set(MODEL_TABLE.names())
    for name in FAMILIES:
        assert callable(MODEL_TABLE.load(name))


def test_built_model_counts_its_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    spec = read_model_spec(tmp_path)
    model = build_model(spec, build_context(torch.float32, CPU))
    assert sum(p.numel() for p in model.parameters()) == spec.num_params
