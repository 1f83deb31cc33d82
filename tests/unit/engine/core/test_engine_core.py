"""Requests come in, end exactly once, and leave nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes.small_brain import VOCAB, SmallBrain
from xllm.errors import CapacityError, ContextTooLong, InvalidRequest, RequestError, Unsupported
from xllm.types.request import GrammarSpec, MediaItem, SloBudgets


def assert_clean(brain: SmallBrain) -> None:
    load = brain.core.load()
    assert brain.core.num_unfinished == load.num_running == load.num_waiting == load.blocks_used == 0
    assert load.blocks_free + load.blocks_cached == load.blocks_total


def test_abort_in_queue_prefill_and_decode_frees_everything_at_once() -> None:
    brain = SmallBrain(max_num_batched_tokens=8, max_num_seqs=2)
    brain.add("decode", 3, max_tokens=50)
    brain.step()
    brain.add("prefill", [500 + i for i in range(30)])
    brain.step()
    brain.add("queue", 9)
    for name in ("queue", "prefill", "decode"):
        (out,) = brain.core.abort(name)
        assert out.finish_reason == "abort"
        brain.core.check()
    assert_clean(brain)
    assert brain.core.abort("decode") == []  # an abort that crosses the end is no error


def test_abort_while_the_step_is_in_flight() -> None:
    brain = SmallBrain(depth=2)
    brain.add("a", 9, max_tokens=20)
    batch = brain.core.next_batch()
    assert batch is not None
    brain.core.abort("a")
    assert brain.core.on_result(brain.body.run(batch)) == []
    brain.core.check()
    assert_clean(brain)


def test_stop_conditions_and_their_reasons() -> None:
    free = SmallBrain()
    free.add("a", 3, max_tokens=8)
    free.run()
    tokens = free.tokens("a")
    assert free.last("a").finish_reason == "length"
    for fields, reason, stop in (
        ({"eos_token_ids": (tokens[2],)}, "stop", None),
        ({"stop_token_ids": (tokens[2],)}, "stop", tokens[2]),
    ):
        brain = SmallBrain()
        brain.add("a", 3, max_tokens=8, **fields)
        brain.run()
        assert brain.tokens("a") == tokens[:3]  # the stop id is told, the edge decides what is shown
        assert (brain.last("a").finish_reason, brain.last("a").stop_reason) == (reason, stop)
    ignoring = SmallBrain()
    ignoring.add("a", 3, max_tokens=8, eos_token_ids=(tokens[2],), ignore_eos=True)
    ignoring.run()
    assert ignoring.tokens("a") == tokens
    full = SmallBrain(max_model_len=10)
    full.add("a", 7, max_tokens=None)
    full.run()
    assert (len(full.tokens("a")), full.last("a").finish_reason) == (3, "length")


def test_an_edge_that_found_a_stop_string_ends_a_choice_as_stopped() -> None:
    brain = SmallBrain()
    brain.add("a", 3, n=2, max_tokens=30)
    brain.step()
    brain.step()
    (out,) = brain.core.abort("a", choice=0, reason="stop")
    assert out.finish_reason == "stop"
    brain.run()
    assert brain.last("a", 1).finish_reason == "length"


def test_deadlines_end_requests_wherever_they_are() -> None:
    brain = SmallBrain(max_num_seqs=1)
    brain.add("running", 3, max_tokens=50, deadline_in_s=5.0)
    brain.add("waiting", 3, max_tokens=50, deadline_in_s=2.0)
    brain.add("patient", 3, max_tokens=2)
    brain.step()
    assert brain.core.next_deadline_in_s() == 2.0
    brain.clock.advance(2.5)
    (out,) = brain.core.tick()
    assert (out.request_id, out.finish_reason, out.error.status) == ("waiting", "deadline", 504)  # type: ignore[union-attr]
    brain.clock.advance(3.0)
    assert [o.request_id for o in brain.core.tick()] == ["running"]
    brain.run()
    assert_clean(brain)
    assert brain.core.next_deadline_in_s() is None


def test_refusals_are_typed_and_leave_no_trace() -> None:
    brain = SmallBrain(max_num_queued_reqs=2)
    item = MediaItem(hash=b"x", kind="image", num_embeds=1)
    cases: list[tuple[type[RequestError], dict[str, object]]] = [
        (InvalidRequest, {"prompt": []}),
        (InvalidRequest, {"prompt": [VOCAB]}),
        (ContextTooLong, {"prompt": 64}),
        (InvalidRequest, {"prompt": 3, "allowed_token_ids": (VOCAB,)}),
        (InvalidRequest, {"prompt": 3, "logit_bias": {VOCAB: 1.0}}),
        (ContextTooLong, {"prompt": 60, "min_tokens": 10, "max_tokens": 20}),
        (InvalidRequest, {"prompt": 3, "resumed_output_ids": ((1,), (2,))}),
        (InvalidRequest, {"prompt": 3, "resumed_output_ids": ((1, 2, 3, 4),)}),
        (Unsupported, {"prompt": 3, "media": (item,)}),
        (Unsupported, {"prompt": 3, "adapter": "lora"}),
        (InvalidRequest, {"prompt": 3, "slo": SloBudgets(ttft_ms=0.0)}),
        (InvalidRequest, {"prompt": 3, "slo": SloBudgets(tpot_ms=-5.0)}),
        (InvalidRequest, {"prompt": 3, "slo": SloBudgets(ttlt_ms=float("nan"))}),
        (Unsupported, {"prompt": 3, "grammar": GrammarSpec(kind="json", text="{}")}),
    ]
    for error, fields in cases:
        with pytest.raises(error) as caught:
            brain.add("bad", **fields)  # type: ignore[arg-type]
        assert caught.value.hint
    assert_clean(brain)
    brain.add("a", 3)
    brain.add("b", 3)
    with pytest.raises(CapacityError) as full:
        brain.add("c", 3)
    assert full.value.status == 429
    assert full.value.retry_after_s >= 1
    with pytest.raises(InvalidRequest, match="already running"):
        brain.add("a", 3)
    brain.core.begin_drain()
    with pytest.raises(CapacityError, match="draining") as draining:
        brain.add("d", 3)
    assert draining.value.status == 503
    brain.run()
    assert_clean(brain)


def test_queued_tokens_are_bounded_too() -> None:
    brain = SmallBrain(max_num_queued_tokens=20)
    brain.add("a", 30)  # alone it may exceed the limit
    with pytest.raises(CapacityError, match="32 prompt tokens"):
        brain.add("b", 2)


def test_masks_carry_allowed_bad_and_min_tokens() -> None:
    brain = SmallBrain()
    brain.add("plain", 3)
    brain.add("a", 3, allowed_token_ids=(5, 6, 7), bad_words_token_ids=((6,), (9, 7)), min_tokens=1,
              eos_token_ids=(5,))  # fmt: skip
    batch = brain.core.next_batch()
    assert batch is not None
    assert batch.has_mask
    (mask,) = brain.core.take_masks()
    assert (mask.logit_rows, mask.vocab_size) == ((1,), VOCAB)
    bits = np.unpackbits(np.frombuffer(mask.bits, dtype=np.uint8), bitorder="little")
    assert list(np.flatnonzero(bits)) == [7]  # 5 ends it too early, 6 is bad
    assert brain.core.take_masks() == []


def test_a_resumed_request_continues_its_indices_and_tokens() -> None:
    whole = SmallBrain()
    whole.add("a", 5, max_tokens=8)
    whole.run()
    tokens = whole.tokens("a")
    brain = SmallBrain()
    brain.add("a", 5, max_tokens=8, attempt=1, resumed_output_ids=(tuple(tokens[:3]),))
    brain.run()
    assert brain.tokens("a") == tokens[3:]
    assert brain.outputs[0].first_token_index == 3
    assert brain.last("a").usage.num_output_tokens == 8  # type: ignore[union-attr]
    assert brain.last("a").attempt == 1


def test_explain_tells_the_life_of_a_request() -> None:
    brain = SmallBrain(num_blocks=10, max_model_len=36, enable_prefix_caching=False)
    for name in ("a", "b"):
        brain.add(name, [ord(name) + i for i in range(14)], max_tokens=20)
    brain.run()
    events = [row["event"] for row in brain.core.explain("b")]
    assert events[:3] == ["queued", "admitted", "preempted"]
    assert events[-1] == "finished"
    preempted = next(row for row in brain.core.explain("b") if row["event"] == "preempted")
    assert preempted["by"] == "a"


def test_all_end_with_an_error_when_the_engine_dies() -> None:
    brain = SmallBrain(max_num_seqs=1)
    brain.add("a", 3, n=2)
    brain.add("b", 3)
    brain.step()
    outputs = brain.core.abort_all("dead")
    assert sorted((o.request_id, o.choice) for o in outputs) == [("a", 0), ("a", 1), ("b", 0)]
    assert_clean(brain)
