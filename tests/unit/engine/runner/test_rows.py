from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.batches import HandBrain, make_request
from xllm.engine.runner.rows import PersistentRows
from xllm.engine.runner.step_plan import plan_step
from xllm.errors import InternalError, Unsupported
from xllm.types.batch import Batch, BatchRow, NewRow, PageOrder


def make_rows(max_rows: int = 4, max_model_len: int = 200, block_size: int = 4) -> PersistentRows:
    return PersistentRows(max_rows=max_rows, max_model_len=max_model_len, block_size=block_size)


def test_a_mixed_step_gathers_what_a_plain_loop_would() -> None:
    rows, brain = make_rows(), HandBrain(4)
    prompts = {0: range(100, 111), 2: range(50, 53), 3: range(7, 27)}
    for row, prompt in prompts.items():
        brain.introduce(row, make_request(f"r{row}", prompt))
    first = brain.batch({0: 5, 2: None, 3: 6})
    rows.apply(first)
    plan = plan_step(rows, first)
    rows.append_samples(np.array([2]), np.array([3]), np.array([77]))
    second = brain.batch({3: 7, 2: None, 0: None})
    rows.apply(second)
    plan = plan_step(rows, second)

    ids, positions, slots = [], [], []
    histories = {row: list(prompt) for row, prompt in prompts.items()}
    histories[2].append(77)
    for scheduled in second.rows:
        table = brain._tables[scheduled.row]
        for position in range(scheduled.start, scheduled.start + scheduled.num_new_tokens):
            ids.append(histories[scheduled.row][position])
            positions.append(position)
            slots.append(table[position // 4] * 4 + position % 4)
    assert plan.token_ids.tolist() == ids
    assert plan.positions.tolist() == positions
    assert plan.slots.tolist() == slots
    assert plan.query_start.tolist() == [0, 7, 8, 14]
    assert plan.seq_lens.tolist() == [13, 4, 11]
    assert plan.sample_tokens.tolist() == [7, 13]
    assert plan.sample_owner.tolist() == [1, 2]
    assert plan.sample_positions.tolist() == [4, 11]
    assert plan.block_tables.shape == (3, 4)
    assert len(set(slots)) == len(slots)


def test_several_logits_of_one_row_are_its_last_tokens() -> None:
    rows = make_rows()
    new = [
        NewRow(
            row=r,
            seq=r,
            request=make_request("a", range(5)),
            choice=0,
            token_ids=tuple(range(5)),
            block_tables=((2 * r, 2 * r + 1),),
        )
        for r in (0, 1)
    ]
    batch = Batch(step=0, rows=(BatchRow(0, 1, 4, (), 3), BatchRow(1, 0, 5, (), 1)), new_rows=tuple(new))
    rows.apply(batch)
    plan = plan_step(rows, batch)
    assert plan.sample_tokens.tolist() == [1, 2, 3, 8]
    assert plan.sample_owner.tolist() == [0, 0, 0, 1]
    assert plan.is_last_sample.tolist() == [False, False, True, True]
    assert plan.sample_positions.tolist() == [3, 4, 5, 5]


def test_prompt_scores_cross_chunk_boundaries_and_stop_at_the_last_prompt_token() -> None:
    rows, brain = make_rows(), HandBrain(4)
    brain.introduce(0, make_request("a", range(10)))
    brain.introduce(1, make_request("b", range(6)))
    first = brain.batch({0: 4, 1: None}, want_prompt_logprobs=(0,))
    rows.apply(first)
    plan = plan_step(rows, first)
    assert plan.scored_tokens.tolist() == [0, 1, 2, 3]  # the fourth scores the first token of the next chunk
    second = brain.batch({0: None}, want_prompt_logprobs=(0,))
    rows.apply(second)
    assert (plan_step(rows, second).positions[plan_step(rows, second).scored_tokens] + 1).tolist() == [
        5,
        6,
        7,
        8,
        9,
    ]


def test_a_freed_row_can_be_introduced_again_and_keeps_nothing() -> None:
    rows = make_rows()
    request = make_request("a", range(9), temperature=0.7, logit_bias={3: 1.0}, presence_penalty=1.0, seed=-5)
    rows.add(
        NewRow(row=1, seq=0, request=request, choice=2, token_ids=tuple(range(9)), block_tables=((5, 6, 7),))
    )
    assert rows.sampling.needs_penalties[1] and rows.sampling.biases[1][0].tolist() == [3]
    other = NewRow(
        row=1, seq=1, request=make_request("b", (4,)), choice=0, token_ids=(4,), block_tables=((8,),)
    )
    rows.apply(Batch(step=1, rows=(BatchRow(1, 0, 1, (), 1),), new_rows=(other,), freed_rows=(1, 3)))
    assert rows.history(1).tolist() == [4]
    assert rows.num_blocks[0, 1] == 1 and rows.tables[0][1, 0] == 8
    assert not rows.sampling.needs_penalties[1] and not rows.sampling.has_bias[1] and not rows.sampling.biases
    assert rows.num_known == 1


def test_introducing_a_row_replaces_what_it_held() -> None:
    rows = make_rows()
    for prompt, blocks in (
        (tuple(range(9)), (5, 6, 7)),
        ((4, 5), (1,)),
    ):  # steps between them were never seen here
        new = NewRow(
            row=1,
            seq=0,
            request=make_request("a", prompt),
            choice=0,
            token_ids=prompt,
            block_tables=(blocks,),
        )
        rows.apply(Batch(step=0, rows=(BatchRow(1, 0, 1, ()),), new_rows=(new,)))
    assert rows.history(1).tolist() == [4, 5]
    assert rows.num_blocks[0, 1] == 1 and rows.tables[0][1, 0] == 1
    assert rows.generation[1] == 2


def test_block_tables_grow_without_losing_entries() -> None:
    rows = make_rows(max_model_len=2000)
    request = make_request("a", range(3))
    rows.add(
        NewRow(row=0, seq=0, request=request, choice=0, token_ids=(0, 1, 2), block_tables=(tuple(range(10)),))
    )
    for first in range(10, 300, 7):
        rows.apply(Batch(step=0, rows=(BatchRow(0, 0, 1, (tuple(range(first, first + 7)),)),)))
    count = int(rows.num_blocks[0, 0])
    assert rows.tables[0][0, :count].tolist() == list(range(count))


def test_seeds_keep_all_64_bits() -> None:
    rows = make_rows()
    for row, seed in enumerate((2**63 - 1, -(2**63), 2**64 - 1, -1)):
        request = make_request("a", (1,), seed=seed)
        rows.add(NewRow(row=row, seq=0, request=request, choice=0, token_ids=(1,), block_tables=((0,),)))
    assert rows.sampling.seeds.tolist() == [2**63 - 1, -(2**63), -1, -1]


def test_a_sample_past_the_context_needs_no_place() -> None:
    rows = make_rows(max_model_len=8)
    rows.add(
        NewRow(
            row=0,
            seq=0,
            request=make_request("a", range(8)),
            choice=0,
            token_ids=tuple(range(8)),
            block_tables=((0, 1),),
        )
    )
    rows.append_samples(np.array([0]), np.array([8]), np.array([5]))
    assert rows.num_tokens[0] == 8


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (BatchRow(0, 2, 4, (), 1), "tokens 2..6"),  # more tokens than known
        (BatchRow(0, 0, 5, (), 6), "6 logits"),
        (BatchRow(1, 0, 1, (), 1), "known: False"),
    ],
)
def test_impossible_rows_are_our_bug(row: BatchRow, message: str) -> None:
    rows = make_rows()
    rows.add(
        NewRow(
            row=0,
            seq=0,
            request=make_request("a", range(5)),
            choice=0,
            token_ids=tuple(range(5)),
            block_tables=((0, 1),),
        )
    )
    with pytest.raises(InternalError, match=message):
        plan_step(rows, Batch(step=0, rows=(row,)))


def test_rows_without_blocks_for_their_tokens_are_our_bug() -> None:
    rows = make_rows()
    rows.add(
        NewRow(
            row=0,
            seq=0,
            request=make_request("a", range(5)),
            choice=0,
            token_ids=tuple(range(5)),
            block_tables=((0,),),
        )
    )
    with pytest.raises(InternalError, match="1 blocks of 4"):
        plan_step(rows, Batch(step=0, rows=(BatchRow(0, 0, 5, (), 1),)))


def test_reserved_orders_are_refused_by_name() -> None:
    rows = make_rows()
    rows.add(
        NewRow(row=0, seq=0, request=make_request("a", (1,)), choice=0, token_ids=(1,), block_tables=((0,),))
    )
    with pytest.raises(Unsupported, match="page_orders"):
        plan_step(
            rows, Batch(step=0, rows=(BatchRow(0, 0, 1, ()),), page_orders=(PageOrder("map", 0, 0, 0),))
        )
    with pytest.raises(Unsupported, match="drafts"):
        plan_step(rows, Batch(step=0, rows=(BatchRow(0, 0, 1, (), draft_ids=(1,)),)))
