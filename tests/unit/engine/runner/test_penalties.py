from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from tests.fakes.batches import make_request
from xllm.engine.runner.penalties import Penalties
from xllm.engine.runner.rows import PersistentRows
from xllm.types.batch import NewRow

VOCAB = 400
PARAMS = {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": -0.7}


def introduce(rows: PersistentRows, row: int, prompt: list[int], output: list[int]) -> None:
    request = make_request("a", prompt, **PARAMS)
    rows.add(
        NewRow(
            row=row,
            seq=0,
            request=request,
            choice=0,
            token_ids=(*prompt, *output),
            block_tables=(tuple(range(200)),),
        )
    )


def expected(logits: torch.Tensor, prompt: list[int], output: list[int]) -> torch.Tensor:
    wanted = logits.clone()
    for token in {*prompt, *output}:
        wanted[token] = wanted[token] / 1.4 if wanted[token] > 0 else wanted[token] * 1.4
    for token, count in Counter(output).items():
        wanted[token] -= 0.3 * count - 0.7
    return wanted


def test_counts_follow_a_long_output_token_by_token() -> None:
    rng = np.random.default_rng(0)
    rows = PersistentRows(max_rows=3, max_model_len=800, block_size=4)
    penalties = Penalties(rows)
    prompt = rng.integers(0, VOCAB, 9).tolist()
    output: list[int] = []
    introduce(rows, 2, prompt, output)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    for _ in range(300):  # far more distinct ids than the first arrays hold
        got = logits.repeat(2, 1)
        penalties.apply(got, np.array([1]), np.array([2]))
        assert torch.equal(got[0], logits)
        torch.testing.assert_close(got[1], expected(logits, prompt, output))
        output.append(int(rng.integers(0, VOCAB)))
        position = len(prompt) + len(output) - 1
        rows.append_samples(np.array([2]), np.array([position]), np.array([output[-1]]))
    assert len(set(output)) > 128


def test_another_sequence_in_the_row_starts_afresh() -> None:
    rows = PersistentRows(max_rows=2, max_model_len=800, block_size=4)
    penalties = Penalties(rows)
    logits = torch.ones(1, VOCAB)
    introduce(rows, 0, [1, 2], [3, 3])
    penalties.apply(logits.clone(), np.array([0]), np.array([0]))
    introduce(rows, 0, [4, 5], [6])
    got = logits.clone()
    penalties.apply(got, np.array([0]), np.array([0]))
    torch.testing.assert_close(got[0], expected(logits[0], [4, 5], [6]))


def test_a_prompt_with_large_ids_and_no_output() -> None:
    rows = PersistentRows(max_rows=2, max_model_len=800, block_size=4)
    introduce(rows, 1, [VOCAB - 1, 0, VOCAB - 1], [])
    got = torch.full((1, VOCAB), -1.0)
    Penalties(rows).apply(got, np.array([0]), np.array([1]))
    torch.testing.assert_close(got[0], expected(torch.full((VOCAB,), -1.0), [VOCAB - 1, 0], []))
