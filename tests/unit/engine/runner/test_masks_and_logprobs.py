from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from xllm.engine.runner.logprobs import score_tokens
from xllm.engine.runner.masks import apply_mask
from xllm.errors import InternalError
from xllm.types.batch import StepMask


def pack(allowed: np.ndarray) -> bytes:
    rows, vocab = allowed.shape
    padded = np.zeros((rows, (vocab + 31) // 32 * 32), dtype=np.uint8)
    padded[:, :vocab] = allowed
    return np.packbits(padded, axis=1, bitorder="little").tobytes()


@pytest.mark.parametrize("vocab", [31, 32, 33, 100])
@pytest.mark.parametrize("logit_rows", [(0, 1, 2, 3), (1, 3), ()])
def test_only_listed_rows_are_masked(vocab: int, logit_rows: tuple[int, ...]) -> None:
    allowed = np.random.default_rng(vocab).random((len(logit_rows), vocab)) < 0.5
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(vocab))
    got = logits.clone()
    apply_mask(got, StepMask(step=0, vocab_size=vocab, logit_rows=logit_rows, bits=pack(allowed)))
    for row in range(4):
        if row in logit_rows:
            keep = torch.from_numpy(allowed[logit_rows.index(row)])
            assert torch.equal(got[row][keep], logits[row][keep])
            assert torch.isinf(got[row][~keep]).all()
        else:
            assert torch.equal(got[row], logits[row])


def test_masks_for_rows_that_do_not_exist_are_our_bug() -> None:
    with pytest.raises(InternalError, match="row 4 of 4"):
        apply_mask(torch.zeros(4, 8), StepMask(step=0, vocab_size=8, logit_rows=(4,), bits=bytes(4)))
    with pytest.raises(InternalError, match="logits have 9"):
        apply_mask(torch.zeros(4, 9), StepMask(step=0, vocab_size=8, logit_rows=(0,), bits=bytes(4)))


def test_equal_logits_share_the_better_rank() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    normaliser = math.log(sum(math.exp(x) for x in logits[0].tolist()))
    for token, rank in ((0, 4), (1, 1), (2, 1), (3, 3)):
        [scored] = score_tokens(logits, torch.tensor([token]), [2])
        assert scored.token.token_id == token and scored.token.rank == rank
        assert scored.token.logprob == pytest.approx(float(logits[0, token]) - normaliser, abs=1e-6)
        assert {t.token_id for t in scored.top} == {1, 2}
        assert [t.rank for t in scored.top] == [1, 2]


def test_rows_may_want_different_counts_and_more_than_there_are_ids() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scored = score_tokens(logits, torch.tensor([0, 1, 2]), [0, 2, 9])
    assert [len(s.top) for s in scored] == [0, 2, 5]
    assert sum(math.exp(t.logprob) for t in scored[2].top) == pytest.approx(1.0, abs=1e-5)


def test_forbidden_ids_have_no_probability() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]])
    [scored] = score_tokens(logits, torch.tensor([0]), [3])
    assert scored.token.logprob == pytest.approx(-math.log(2), abs=1e-6)
    assert scored.top[2].logprob == float("-inf")
