"""Reading in pieces: whatever the cut, the model has the checkpoint's numbers, in memory once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.fakes.compiler import HAS_COMPILER
from xllm.config.model_spec import read_model_spec
from xllm.engine.kernels.linear.native import PackedWeight, take_rows
from xllm.engine.layers.build_context import build_context
from xllm.engine.models import load_model
from xllm.engine.models.arena import arena_bytes, plan_places
from xllm.engine.models.reader import PIECE_BYTES
from xllm.engine.models.registry import build_model

WIDTH, INNER, VOCAB = 64, 192, 2 * PIECE_BYTES // 128 + 70
"""The table is two whole pieces and a bit, which is no whole block."""
CPU = torch.device("cpu")


def checkpoint(directory: Path, dtype: torch.dtype, **config: Any) -> dict[str, torch.Tensor]:
    settings: dict[str, Any] = dict(
        architectures=["Qwen3ForCausalLM"],
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    (directory / "config.json").write_text(json.dumps({**settings, **config}))
    layer = "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
        f"{layer}.input_layernorm.weight": (WIDTH,),
        f"{layer}.post_attention_layernorm.weight": (WIDTH,),
        f"{layer}.self_attn.q_norm.weight": (16,),
        f"{layer}.self_attn.k_norm.weight": (16,),
        f"{layer}.mlp.gate_proj.weight": (INNER, WIDTH),
        f"{layer}.mlp.up_proj.weight": (INNER, WIDTH),
        f"{layer}.mlp.down_proj.weight": (WIDTH, INNER),
    }
    shapes |= {f"{layer}.self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors")
    return weights


def rows_of(module: Any) -> torch.Tensor:
    """The weight as the checkpoint would have it, whatever the kernels keep."""
    if isinstance(module.packed, PackedWeight):
        return take_rows(module.packed, torch.arange(module.packed.num_out))
    return module.weight.data


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("run", [torch.bfloat16, torch.float32])
def test_every_number_arrives_at_its_place(
    tmp_path: Path, kernels: str, stored: torch.dtype, run: torch.dtype
) -> None:
    if kernels == "native" and not HAS_COMPILER:
        pytest.skip("no compiler")
    weights = {name: tensor.to(run) for name, tensor in checkpoint(tmp_path, stored).items()}
    chosen = {"linear": kernels}
    told: list[tuple[int, int]] = []
    model: Any = load_model(
        read_model_spec(tmp_path),
        tmp_path,
        build_context(run, CPU, kernels=chosen),
        progress=lambda done, total: told.append((done, total)),
    )
    layer = model.layers[0]
    name = "model.layers.0"
    assert torch.equal(rows_of(model.embedding), weights["model.embed_tokens.weight"])
    qkv = torch.cat([weights[f"{name}.self_attn.{p}_proj.weight"] for p in "qkv"])
    assert torch.equal(rows_of(layer.attention.qkv), qkv)
    gate_up = torch.cat([weights[f"{name}.mlp.{p}_proj.weight"] for p in ("gate", "up")])
    assert torch.equal(rows_of(layer.mlp.gate_up), gate_up)
    assert torch.equal(rows_of(layer.mlp.down), weights[f"{name}.mlp.down_proj.weight"])
    assert torch.equal(layer.mlp_norm.weight.data, weights[f"{name}.post_attention_layernorm.weight"])
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == told[-1][1]
    assert len(told) > len(weights) + 1, "the table is more than one piece"


@pytest.mark.parametrize("inner", [64, 40])
@pytest.mark.parametrize("kernels", ["native", "reference"])
def test_experts_arrive_at_their_places(tmp_path: Path, inner: int, kernels: str) -> None:
    """40 is no whole block: gate and up of an expert share one."""
    if kernels == "native" and not HAS_COMPILER:
        pytest.skip("no compiler")
    weights = checkpoint(
        tmp_path, torch.bfloat16, architectures=["Qwen3MoeForCausalLM"], num_experts=3,
        num_experts_per_tok=2, moe_intermediate_size=inner, norm_topk_prob=True, decoder_sparse_step=1,
    )  # fmt: skip
    mlp = "model.layers.0.mlp"
    for part in ("gate", "up", "down"):
        del weights[f"{mlp}.{part}_proj.weight"]
    generator = torch.Generator().manual_seed(1)
    shapes = {f"{mlp}.gate.weight": (3, WIDTH)}
    for i in range(3):
        shapes |= {f"{mlp}.experts.{i}.{part}_proj.weight": (inner, WIDTH) for part in ("gate", "up")}
        shapes[f"{mlp}.experts.{i}.down_proj.weight"] = (WIDTH, inner)
    weights |= {n: torch.randn(s, generator=generator).to(torch.bfloat16) for n, s in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors")
    build = build_context(torch.bfloat16, CPU, kernels={"linear": kernels, "moe": kernels})
    cache = tmp_path / "cache" if kernels == "native" else None
    for _ in range(2):  # from the checkpoint, then from the cache
        model: Any = load_model(read_model_spec(tmp_path), tmp_path, build, packed_cache=cache)
        moe = model.layers[0].mlp
        router, gate_up, down = (_stack(weight) for weight in moe.packed)
        assert torch.equal(router[0], weights[f"{mlp}.gate.weight"])
        for i in range(3):
            name = f"{mlp}.experts.{i}"
            fused = torch.cat([weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up")])
            assert torch.equal(gate_up[i], fused)
            assert torch.equal(down[i], weights[f"{name}.down_proj.weight"])


def _stack(weight: Any) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        return weight if weight.ndim == 3 else weight[None]
    rows = torch.arange(weight.num_out)
    return torch.stack([take_rows(PackedWeight(e, weight.num_out, weight.num_in), rows) for e in weight.data])


def test_all_weights_lie_in_one_stretch_and_a_tied_table_is_there_once(tmp_path: Path) -> None:
    checkpoint(tmp_path, torch.bfloat16)
    spec, build = read_model_spec(tmp_path), build_context(torch.bfloat16, CPU)
    size = arena_bytes(plan_places(build_model(spec, build)))
    model = load_model(spec, tmp_path, build)
    begins = [p.data_ptr() for p in model.parameters()]
    ends = [p.data_ptr() + p.numel() * p.element_size() for p in model.parameters()]
    assert max(ends) - min(begins) <= size < 1.02 * spec.weight_bytes("bfloat16") + 64 * 4096
