"""Experts of the CPU library: every variant, against the reference, and bit for bit the same in any batch."""

from __future__ import annotations

import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from xllm.config.model_spec import ModelSpec, MoeSpec, RopeSpec
from xllm.engine.kernels.moe import native as native_moe
from xllm.engine.kernels.moe import reference
from xllm.engine.layers.build_context import build_context
from xllm.engine.models import build_model
from xllm.engine.models.native_layers import can_run_natively

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "hidden", "inner", "experts", "top_k"),
    [(1, 16, 12, 5, 3), (9, 34, 10, 4, 4), (33, 128, 96, 128, 8), (700, 64, 48, 8, 2)],
)
def test_experts(
    variant: str, dtype: torch.dtype, tokens: int, hidden: int, inner: int, experts: int, top_k: int
) -> None:
    """As close to float32 as torch in the same type; a token alone gives the bits it gives among others."""
    torch.manual_seed(tokens)
    x, router = torch.randn(tokens, hidden).to(dtype), torch.randn(experts, hidden).to(dtype)
    gate_up = (torch.randn(experts, 2 * inner, hidden) / 4).to(dtype)
    down = (torch.randn(experts, hidden, inner) / 4).to(dtype)
    exact = reference.moe(x.float(), router.float(), gate_up.float(), down.float(), top_k, True)
    packed = [native_moe.pack_experts(weight) for weight in (router, gate_up, down)]
    assert all(isinstance(weight, native_moe.PackedExperts) for weight in packed)
    got = native_moe.moe(x, *packed, top_k, True)
    assert got.dtype == dtype
    tolerance = (2e-5 if dtype == torch.float32 else 2e-2) * float(exact.abs().max())
    torch.testing.assert_close(got.float(), exact, rtol=0, atol=tolerance)
    for i in {0, tokens // 2, tokens - 1}:
        assert torch.equal(native_moe.moe(x[i : i + 1], *packed, top_k, True)[0], got[i])


def test_a_broken_token_stays_alone() -> None:
    x, router = torch.randn(3, 16), torch.randn(4, 16)
    packed = [native_moe.pack_experts(w) for w in (router, torch.randn(4, 16, 16), torch.randn(4, 16, 8))]
    good = native_moe.moe(x, *packed, 2, True)
    x[1] = float("nan")
    got = native_moe.moe(x, *packed, 2, True)
    assert got[1].isnan().all() and torch.equal(got[[0, 2]], good[[0, 2]])


def test_sparse_models_run_layer_by_layer() -> None:
    spec = ModelSpec(
        architecture="Qwen3MoeForCausalLM",
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        vocab_size=67,
        max_position=64,
        rms_norm_eps=1e-6,
        rope=RopeSpec(),
        tie_word_embeddings=True,
        has_qk_norm=True,
        windows=(None, None),
        moe=MoeSpec(num_experts=4, top_k=2, intermediate_size=24, norm_topk_prob=True, layers=frozenset({1})),
    )
    model = build_model(spec, build_context(torch.float32, torch.device("cpu")))
    assert not can_run_natively(model)
    model.pack()
    assert can_run_natively(model)
