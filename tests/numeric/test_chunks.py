"""Paged and chunked feeding: the same logits however a prompt is cut, wherever its blocks lie, whatever is beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.numeric.oracle import Engine, make_oracle, oracle_logits, random_prompts

FAMILIES = {
    "full": ("qwen3", dict(head_dim=32)),
    "window": ("mistral", dict(sliding_window=40)),
    "mixed": ("qwen2", dict(use_sliding_window=True, sliding_window=25, max_window_layers=2)),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    family, settings = FAMILIES[request.param]
    directory = tmp_path_factory.mktemp("model")
    return make_oracle(family, directory, **settings), directory


@pytest.mark.parametrize("chunk", [1, 7, 16, 17, 64, 10**6])
@pytest.mark.parametrize("block_size", [1, 16, 32])
def test_chunks_agree(case: tuple[Any, Path], chunk: int, block_size: int) -> None:
    model, directory = case
    engine = Engine.load(directory, block_size=block_size, num_blocks=512)
    prompts = random_prompts(engine.spec.vocab_size, [140, 95, 3])
    for ours, prompt in zip(engine.logits(prompts, chunk), prompts, strict=True):
        torch.testing.assert_close(ours, oracle_logits(model, prompt), rtol=0, atol=1e-4)


def test_long_prompt_in_tiles(case: tuple[Any, Path]) -> None:
    model, directory = case
    engine = Engine.load(directory, num_blocks=40)
    (prompt,) = random_prompts(engine.spec.vocab_size, [500])
    expected = oracle_logits(model, prompt)
    for chunk in (500, 301, 130):
        torch.testing.assert_close(engine.logits([prompt], chunk)[0], expected, rtol=0, atol=2e-4)


def test_mixed_step_equals_separate_steps(case: tuple[Any, Path]) -> None:
    """Decodes, a short chunk, a long chunk and a fresh prompt in one step."""
    _, directory = case
    engine = Engine.load(directory)
    lengths, new = [100, 37, 64, 129, 80, 30], [1, 1, 5, 33, 80, 1]
    prompts = random_prompts(engine.spec.vocab_size, lengths)
    tables = engine.tables(len(prompts), 130)
    rows = [(p[: n - k], p[n - k :], n - k) for p, n, k in zip(prompts, lengths, new, strict=True)]
    for (head, _, start), table in zip(rows, tables, strict=True):
        if start:
            engine.step([(head, 0)], table[None])
    together = engine.step([(tail, start) for _, tail, start in rows], tables).split(new)
    for (_, tail, start), table, part in zip(rows, tables, together, strict=True):
        torch.testing.assert_close(engine.step([(tail, start)], table[None]), part, rtol=0, atol=1e-4)


def test_decode_groups_are_cut_and_agree(case: tuple[Any, Path]) -> None:
    """A tiny gather limit makes every row its own group; results do not change."""
    _, directory = case
    lengths = [3, 150, 17, 64, 65, 149]
    outputs = []
    for limit in (1, 1 << 24):
        engine = Engine.load(directory, max_gather_bytes=limit)
        prompts = random_prompts(engine.spec.vocab_size, lengths)
        tables = engine.tables(len(prompts), 150)
        for prompt, table in zip(prompts, tables, strict=True):
            if prompt[:-1]:
                engine.step([(prompt[:-1], 0)], table[None])
        outputs.append(engine.step([(p[-1:], len(p) - 1) for p in prompts], tables))
        plan = engine.planner.plan([1] * 6, lengths, tables, np.full(6, -1, dtype=np.int64))
        groups = plan.groups[engine.spec.windows[0]]
        assert len(groups) == 6 if limit == 1 else len(groups) < 6
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-4)


def test_rows_share_blocks_written_in_the_same_step(case: tuple[Any, Path]) -> None:
    """A row may attend to blocks that another row of the step fills (a prefix shared while it is computed)."""
    model, directory = case
    engine = Engine.load(directory)
    (prompt,) = random_prompts(engine.spec.vocab_size, [48])
    table = engine.tables(1, 64)[0]
    other = table.copy()
    other[2:] = engine.tables(1, 256)[0][-2:]
    out = engine.step([(prompt[:32], 0), (prompt[32:], 32)], np.stack([table, other]))
    torch.testing.assert_close(out, oracle_logits(model, prompt), rtol=0, atol=1e-4)


def test_padding_tokens_are_not_stored(case: tuple[Any, Path]) -> None:
    _, directory = case
    engine = Engine.load(directory)
    before = engine.pool.layer(0).k.nan_to_num(7.0).clone()
    table = engine.tables(1, 16)
    slots = np.array([table[0, 0] * 16, -1], dtype=np.int64)
    metadata = engine.planner.plan([2], [2], table, slots)
    assert metadata.write_tokens is not None and metadata.write_tokens.tolist() == [0]
    kernels = torch.ones(2, engine.spec.num_kv_heads, engine.spec.head_dim)
    from xllm.engine.kernels.kv_write.reference import kv_write

    kv_write(engine.pool.layer(0).k, kernels, metadata.write_rows, metadata.write_tokens)
    changed = (engine.pool.layer(0).k.nan_to_num(7.0) != before).any(dim=-1).nonzero()
    assert changed.tolist() == [[int(table[0, 0]), h, 0] for h in range(engine.spec.num_kv_heads)]
