"""bf16 and fp16: our error against float32 is no larger than that of transformers in the same type.

One model at a time operation by operation; and through the runner, with whole layers as one call of the CPU library, which
is what serves bfloat16 on a CPU, in the mean over seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.compiler import HAS_COMPILER
from tests.numeric.accuracy import CHOOSING, error_ratios, family_settings, mean_error
from tests.numeric.oracle import CLASSES, Engine, make_oracle, oracle_logits, random_prompts

WIDE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, vocab_size=1031)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", dict(**WIDE, attention_bias=True, num_attention_heads=8)),
    "mistral": ("mistral", dict(**WIDE, sliding_window=50)),
    "qwen2": ("qwen2", dict(**WIDE, num_attention_heads=7, num_key_value_heads=1, head_dim=32)),
    "qwen3": ("qwen3", dict(**WIDE, head_dim=64)),
    "qwen3_moe": (
        "qwen3_moe",
        dict(**WIDE, head_dim=64, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128),
    ),
}
MAX_RATIO = 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", list(CASES))
def test_error_is_like_transformers(case: str, dtype: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    low_type = getattr(torch, dtype)
    # Every type runs the same, already rounded weights: what is compared is arithmetic.
    make_oracle(family, tmp_path / "full", **settings).to(low_type).save_pretrained(tmp_path / "low")
    exact = CLASSES[family][1].from_pretrained(tmp_path / "low", dtype=torch.float32).eval()
    theirs = CLASSES[family][1].from_pretrained(tmp_path / "low", dtype=low_type).eval()
    engine = Engine.load(tmp_path / "low", dtype=dtype)
    prompts = random_prompts(engine.spec.vocab_size, [60, 128, 200], seed=11)
    expected = [oracle_logits(exact, p) for p in prompts]
    their_error = mean_error([oracle_logits(theirs, p) for p in prompts], expected)
    assert their_error > 0
    for chunk in (1000, 1):
        ratio = mean_error(engine.logits(prompts, chunk), expected) / their_error
        print(f"{case} {dtype} chunk {chunk}: {ratio:.3f} of transformers' error {their_error:.2e}")
        assert ratio <= MAX_RATIO


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
@pytest.mark.parametrize("name", [name for name in family_settings(256, 8) if name != CHOOSING])
def test_what_serves_is_no_further_off_than_transformers(name: str, tmp_path: Path) -> None:
    """Eight layers, through the runner with one call per layer, prompts in chunks; three seeds."""
    family, settings = family_settings(256, 8)[name]
    way = "layers in one call"
    ratios = error_ratios(family, settings, tmp_path, seeds=range(3), lengths=[40, 75], ways=[way])
    print(f"{name}: {ratios[way]:.3f} of transformers' error")
    assert ratios[way] <= MAX_RATIO
