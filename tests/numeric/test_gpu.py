"""The reference path on a GPU against the CPU's float32, and bf16 against transformers' bf16 on the same GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.numeric.oracle import CLASSES, Engine, make_oracle, oracle_logits, random_prompts
from tests.numeric.test_low_precision import CASES, MAX_RATIO
from xllm.engine.kernels.sampling import sample_gumbel

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.mark.parametrize("case", list(CASES))
def test_float32_logits_match_the_cpu(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    oracle = make_oracle(family, tmp_path, **settings)
    engine = Engine.load(tmp_path, device=DEVICE)
    prompts = random_prompts(engine.spec.vocab_size, [1, 17, 60, 200], seed=12)
    for chunk in (1000, 48, 1):
        for got, prompt in zip(engine.logits(prompts, chunk), prompts, strict=True):
            torch.testing.assert_close(got.cpu(), oracle_logits(oracle, prompt), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", list(CASES))
def test_low_precision_error_is_like_transformers(case: str, dtype: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    low_type = getattr(torch, dtype)
    make_oracle(family, tmp_path / "full", **settings).to(low_type).save_pretrained(tmp_path / "low")
    exact = CLASSES[family][1].from_pretrained(tmp_path / "low", dtype=torch.float32).eval()
    theirs = CLASSES[family][1].from_pretrained(tmp_path / "low", dtype=low_type).to(DEVICE).eval()
    engine = Engine.load(tmp_path / "low", dtype=dtype, device=DEVICE)
    prompts = random_prompts(engine.spec.vocab_size, [60, 128, 200], seed=11)
    expected = [oracle_logits(exact, p) for p in prompts]
    their_error = mean_error([oracle_logits(theirs, p) for p in prompts], expected)
    assert their_error > 0
    for chunk in (1000, 1):
        ratio = mean_error(engine.logits(prompts, chunk), expected) / their_error
        print(
            f"{case} {dtype} chunk {chunk} on {DEVICE}: {ratio:.3f} of transformers' error {their_error:.2e}"
        )
        assert ratio <= MAX_RATIO


def mean_error(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return float(
        torch.cat([(a.cpu() - b).abs().flatten() for a, b in zip(got, expected, strict=True)]).mean()
    )


def test_samples_match_the_cpu() -> None:
    num_rows, vocab_size = 64, 5003
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num_rows, vocab_size, generator=generator) * 3
    columns = {
        "temperature": torch.full((num_rows,), 0.9),
        "top_k": torch.tensor([0, 50] * (num_rows // 2)),
        "top_p": torch.tensor([1.0, 1.0, 0.8, 0.9] * (num_rows // 4)),
        "min_p": torch.tensor([0.0] * 7 + [0.05]).repeat(num_rows // 8),
        "seeds": torch.arange(num_rows) * 7919 - 100,
        "choices": torch.arange(num_rows) % 3,
        "positions": torch.arange(num_rows) + 5,
    }
    on_cpu = sample_gumbel(logits, **columns)
    on_gpu = sample_gumbel(logits.to(DEVICE), **{name: column.to(DEVICE) for name, column in columns.items()})
    # Logarithms differ in the last bit between libraries: near-ties may fall differently, hardly ever in 64 draws.
    assert (on_cpu == on_gpu.cpu()).sum() >= num_rows - 1
    assert len(set(on_cpu.tolist())) > num_rows // 2
