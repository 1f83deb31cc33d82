"""Every family against transformers, float32: logits of whole prompts and greedy tokens, any chunk size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.numeric.oracle import Engine, make_oracle, oracle_greedy, oracle_logits, random_prompts

YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=40, head_dim=16)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa1": ("llama", dict(num_key_value_heads=4)),
    "llama-gqa7": ("llama", dict(num_attention_heads=7, num_key_value_heads=1, hidden_size=112)),
    "llama-tied": ("llama", dict(tie_word_embeddings=True)),
    "llama-biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-wide-heads": ("llama", dict(head_dim=48)),
    "llama-linear": ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=5e4, factor=2.5))),
    "llama-llama3": ("llama", dict(rope_parameters=LLAMA3)),
    "llama-yarn": ("llama", dict(rope_parameters=YARN)),
    "llama-dynamic": ("llama", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0))),
    "llama-eps": ("llama", dict(rms_norm_eps=0.1)),
    "mistral-window": ("mistral", dict(sliding_window=21)),
    "mistral-window-gqa7": (
        "mistral",
        dict(sliding_window=8, num_attention_heads=7, num_key_value_heads=1, head_dim=24),
    ),
    "mistral-full": ("mistral", dict(sliding_window=None, head_dim=32)),
    "qwen2": ("qwen2", dict()),
    "qwen2-gqa7-tied": (
        "qwen2",
        dict(num_attention_heads=14, num_key_value_heads=2, hidden_size=112, tie_word_embeddings=True),
    ),
    "qwen2-mixed-windows": ("qwen2", dict(use_sliding_window=True, sliding_window=19, max_window_layers=1)),
    "qwen3": ("qwen3", dict(head_dim=32)),
    "qwen3-tied-gqa1": ("qwen3", dict(head_dim=16, num_key_value_heads=4, tie_word_embeddings=True)),
    "qwen3-gqa7": ("qwen3", dict(head_dim=32, num_attention_heads=7, num_key_value_heads=1)),
    "qwen3-bias": ("qwen3", dict(head_dim=32, attention_bias=True)),
    "qwen3-yarn": ("qwen3", dict(head_dim=32, rope_parameters=YARN)),
    "qwen3-yarn-explicit": (
        "qwen3",
        dict(
            head_dim=32,
            rope_parameters={**YARN, "attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
    ),
    "qwen3-yarn-mscale": (
        "qwen3",
        dict(head_dim=32, rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False}),
    ),
    "qwen3-windows": (
        "qwen3",
        dict(head_dim=32, use_sliding_window=True, sliding_window=33, max_window_layers=2),
    ),
    "qwen3-moe": ("qwen3_moe", dict(**MOE, norm_topk_prob=True)),
    "qwen3-moe-unnormalised": ("qwen3_moe", dict(**MOE, norm_topk_prob=False)),
    "qwen3-moe-sparse-step": ("qwen3_moe", dict(**MOE, decoder_sparse_step=2, norm_topk_prob=True)),
    "qwen3-moe-dense-layers": ("qwen3_moe", dict(**MOE, mlp_only_layers=[0], num_key_value_heads=1)),
    "qwen3-moe-window": (
        "qwen3_moe",
        dict(**MOE, use_sliding_window=True, sliding_window=17, norm_topk_prob=True),
    ),
}
LENGTHS = [1, 2, 17, 40, 150]
NUM_TOKENS = 6


def assert_greedy_equal(model: Any, prompt: list[int], ours: list[int]) -> None:
    """Equal ids; a first difference is excused where the oracle's top-2 margin is below 1e-4."""
    theirs, margins = oracle_greedy(model, prompt, len(ours))
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            assert margins[i] < 1e-4, f"token {i}: {a} instead of {b}, margin {margins[i]}"
            return


@pytest.fixture(scope="module", params=list(CASES), ids=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    family, settings = CASES[request.param]
    directory = tmp_path_factory.mktemp("model")
    return make_oracle(family, directory, seed=len(request.param), **settings), directory


def test_logits_equal(case: tuple[Any, Path]) -> None:
    model, directory = case
    engine = Engine.load(directory)
    prompts = random_prompts(engine.spec.vocab_size, LENGTHS)
    expected = [oracle_logits(model, p) for p in prompts]
    assert engine.spec.num_params == model.num_parameters()
    for chunk in (1000, 64, 7):
        for ours, theirs in zip(engine.logits(prompts, chunk), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_greedy_equal(case: tuple[Any, Path]) -> None:
    model, directory = case
    engine = Engine.load(directory, block_size=8)
    prompts = random_prompts(engine.spec.vocab_size, [1, 30, 70], seed=3)
    for prompt, ours in zip(prompts, engine.greedy(prompts, NUM_TOKENS, chunk=32), strict=True):
        assert_greedy_equal(model, prompt, ours)
