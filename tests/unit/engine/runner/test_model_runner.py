from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.fakes.batches import make_request
from xllm.errors import InternalError
from xllm.types.batch import BlockCopy, StepMask

Make = Callable[..., "TinyEngineBody"]  # noqa: F821


def test_chunks_and_batches_give_the_tokens_of_a_lone_prompt(make_body: Make) -> None:
    prompt = tuple(range(3, 40))
    alone = make_body()
    alone.brain.introduce(0, make_request("a", prompt))
    wanted = alone.decode(0, 10)
    body = make_body()
    body.brain.introduce(5, make_request("a", prompt))
    body.brain.introduce(2, make_request("b", prompt[::-1]))
    tokens: list[int] = []
    for step in range(40):
        plan: dict[int, int | None] = {2: 1, 5: 7} if step % 2 else {5: 3, 2: None}
        batch = body.brain.batch(plan)
        result = body.run(batch)
        index = next(i for i, row in enumerate(batch.rows) if row.row == 5)
        assert len(result.tokens[index]) == batch.rows[index].num_logits
        tokens += result.tokens[index]
    assert tokens[:10] == wanted


def test_a_known_history_is_recomputed_and_continued(make_body: Make) -> None:
    prompt = tuple(range(3, 20))
    body = make_body()
    body.brain.introduce(0, make_request("a", prompt))
    wanted = body.decode(0, 10)
    body.brain.free(0)
    body.brain.introduce(
        0, make_request("a", prompt), outputs=wanted[:6]
    )  # preempted, comes back with its tokens
    assert body.decode(0, 4) == wanted[6:]


def test_the_next_step_needs_no_token_from_the_brain(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("a", (1, 2, 3)))
    steps = [body.brain.batch({0: None}) for _ in range(5)]  # planned before any of them has run
    tokens = [body.run(batch).tokens[0][0] for batch in steps]
    again = make_body()
    again.brain.introduce(0, make_request("a", (1, 2, 3)))
    assert tokens == again.decode(0, 5)


def test_nan_logits_are_an_error_of_their_row(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("good", (1, 2, 3), logprobs=1))
    body.brain.introduce(1, make_request("bad", (4, 5, 6), logprobs=1))
    with torch.inference_mode():
        body.model.embedding.weight[5] = float("nan")
    result = body.run(body.brain.batch({1: None, 0: None}))
    assert result.status == "ok"
    assert [e.index for e in result.row_errors] == [0]
    assert "NaN" in result.row_errors[0].error.message
    assert result.tokens[0] == () and len(result.tokens[1]) == 1
    assert result.logprobs[0] is None and result.logprobs[1] is not None


def test_a_mask_that_forbids_everything_is_an_error_of_its_row(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("a", (1, 2, 3)))
    body.brain.introduce(1, make_request("b", (1, 2, 3)))
    row_bytes = (97 + 31) // 32 * 4
    only_11 = np.zeros(row_bytes, dtype=np.uint8)
    only_11[11 // 8] = 1 << (11 % 8)
    bits = bytes(row_bytes) + only_11.tobytes()
    batch = body.brain.batch({0: None, 1: None}, has_mask=True)
    result = body.run(batch, StepMask(step=0, vocab_size=97, logit_rows=(0, 1), bits=bits))
    assert [e.index for e in result.row_errors] == [0]
    assert "masked" in result.row_errors[0].error.message
    assert result.tokens == ((), (11,))


def test_a_mask_of_the_wrong_size_fails_the_step(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("a", (1, 2, 3)))
    batch = body.brain.batch({0: None}, has_mask=True)
    with pytest.raises(InternalError, match="bytes for 1 rows"):
        body.run(batch, StepMask(step=0, vocab_size=97, logit_rows=(0,), bits=b"\xff"))


def test_interruption_stops_between_layers_and_the_step_can_be_run_again(make_body: Make) -> None:
    body, untouched = make_body(), make_body()
    for each in (body, untouched):
        each.brain.introduce(0, make_request("a", (1, 2, 3, 4, 5)))
    batch = body.brain.batch({0: None}, interruptible=True)
    body.runner.interrupt(batch.step)
    result = body.run(batch)
    assert result.status == "interrupted" and result.tokens == ()
    assert body.runner.layers_done == 1
    body.brain._computed[0], body.brain._history[0] = 0, 5  # the brain takes it back
    assert body.decode(0, 4) == untouched.decode(0, 4)


def test_a_step_with_online_rows_is_not_interrupted(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("a", (1, 2, 3)))
    batch = body.brain.batch({0: None})
    body.runner.interrupt(batch.step)
    assert body.run(batch).status == "ok"
    assert body.runner.layers_done == 2


def test_a_forward_that_raises_leaves_the_rows_usable(make_body: Make) -> None:
    body, untouched = make_body(), make_body()
    for each in (body, untouched):
        each.brain.introduce(0, make_request("a", (1, 2, 3)))
    first = body.brain.batch({0: None})
    forward, body.runner.graph_book.forward = body.runner.graph_book.forward, raise_out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        body.run(first)
    body.runner.graph_book.forward = forward
    body.brain._computed[0], body.brain._history[0] = 0, 3
    assert body.decode(0, 3) == untouched.decode(0, 3)


def raise_out_of_memory(*args: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("no memory")


def test_a_fork_shares_full_blocks_and_copies_the_tail(make_body: Make) -> None:
    body = make_body()
    prompt = tuple(range(10, 21))  # 11 tokens: two full blocks and three slots
    body.brain.introduce(0, make_request("a", prompt))
    body.run(body.brain.batch({0: None}))
    tables = body.brain._tables[0]
    tail = 200
    body.brain.introduce(1, make_request("b", prompt), blocks=(*tables[:2], tail))
    body.brain._computed[1] = 10
    batch = body.brain.batch({1: None}, copies=(BlockCopy(0, tables[2], tail, 2),))
    assert batch.rows[0].num_new_tokens == 1
    forked = list(body.run(batch).tokens[0])
    forked += body.decode(1, 4)
    alone = make_body()
    alone.brain.introduce(0, make_request("a", prompt))
    assert forked == alone.decode(0, 5)


def test_facts_are_measured(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("a", (1, 2, 3)))
    facts = body.run(body.brain.batch({0: None})).facts
    assert facts.forward_s > 0 and facts.sample_s > 0 and facts.prepare_s > 0
    assert facts.total_s >= facts.forward_s + facts.sample_s


def test_a_batch_of_orders_only_is_answered(make_body: Make) -> None:
    body = make_body()
    body.brain.introduce(0, make_request("a", (1, 2, 3)))
    body.run(body.brain.batch({0: None}))
    body.brain.free(0)
    result = body.run(body.brain.batch({}))
    assert result.status == "ok" and result.tokens == ()
    assert body.runner._rows.num_known == 0
