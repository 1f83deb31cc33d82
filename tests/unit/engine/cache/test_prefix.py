"""Prefix cache through the brain: what is hit, what is shared, what is forgotten."""

from __future__ import annotations

from tests.fakes.small_brain import BLOCK, SmallBrain


def new_tokens(brain: SmallBrain, name: str, prompt: object, **fields: object) -> int:
    """Prompt tokens a request really computes."""
    before = brain.body.num_tokens_computed
    brain.add(name, prompt, **({"max_tokens": 1} | fields))  # type: ignore[arg-type]
    brain.run()
    return brain.body.num_tokens_computed - before


def test_a_whole_prompt_hit_recomputes_one_token() -> None:
    brain = SmallBrain()
    assert new_tokens(brain, "a", 16) == 16
    assert new_tokens(brain, "b", 16) == 1
    assert brain.body.num_copies == 1  # the shared last block is copied before its last token is written
    assert brain.last("b").usage.num_cached_tokens == 15  # type: ignore[union-attr]
    assert brain.tokens("a") == brain.tokens("b")


def test_a_partial_hit_shares_whole_blocks_only() -> None:
    brain = SmallBrain()
    new_tokens(brain, "a", 10)
    assert new_tokens(brain, "b", [*range(8), 500, 501, 502]) == 3
    assert new_tokens(brain, "c", [*range(7), 500]) == 4


def test_salts_do_not_share() -> None:
    brain = SmallBrain()
    assert new_tokens(brain, "a", 16, cache_salt="x") == 16
    assert new_tokens(brain, "b", 16, cache_salt="y") == 16
    assert new_tokens(brain, "c", 16, cache_salt="x") == 1


def test_prompt_logprobs_skip_the_hit() -> None:
    brain = SmallBrain()
    new_tokens(brain, "a", 16)
    assert new_tokens(brain, "b", 16, prompt_logprobs=1) == 16


def test_caching_off_finds_nothing() -> None:
    brain = SmallBrain(enable_prefix_caching=False)
    assert new_tokens(brain, "a", 16) == new_tokens(brain, "b", 16) == 16


def test_generated_tokens_are_cached_for_the_next_turn() -> None:
    brain = SmallBrain()
    brain.add("a", 6, max_tokens=7)
    brain.run()
    turn = [*range(6), *brain.tokens("a"), 999]
    assert new_tokens(brain, "b", turn) == len(turn) - 12  # the last sampled token was never computed


def test_requests_of_one_step_share_what_the_first_computes() -> None:
    brain = SmallBrain()
    brain.add("a", 17)
    brain.add("b", [*range(16), 900])
    batch = brain.step()
    assert batch is not None
    assert [r.num_new_tokens for r in batch.rows] == [17, 1]
    brain.run()
    alone = SmallBrain()
    alone.add("b", [*range(16), 900])
    alone.run()
    assert brain.tokens("b") == alone.tokens("b")


def test_lru_evicts_tails_before_the_prefixes_they_extend() -> None:
    brain = SmallBrain(num_blocks=8, max_model_len=32)
    new_tokens(brain, "a", 16)  # 4 blocks cached (5 with the answer's)
    new_tokens(brain, "b", [700 + i for i in range(20)])  # needs 5: evicts the tail of a
    assert 0 < new_tokens(brain, "c", 16) < 16


def test_events_name_what_is_stored_and_removed_after_commit_only() -> None:
    brain = SmallBrain(num_blocks=8, max_model_len=32)
    brain.add("a", 8, max_tokens=1)
    batch = brain.core.next_batch()
    assert batch is not None
    assert brain.core.take_kv_events() == []  # promised, not committed
    brain.core.on_result(brain.body.run(batch))
    stored = brain.core.take_kv_events()
    assert [e.kind for e in stored] == ["stored", "stored"]
    assert stored[0].parent is None
    assert stored[1].parent == stored[0].hashes[0]
    (run,) = brain.core.kv_snapshot()
    assert run.hashes == stored[0].hashes + stored[1].hashes and run.parent is None
    new_tokens(brain, "b", [700 + i for i in range(31)])
    removed = [e.hashes[0] for e in brain.core.take_kv_events() if e.kind == "removed"]
    assert removed == [stored[1].hashes[0], stored[0].hashes[0]]


def test_a_snapshot_has_an_event_for_each_run_of_blocks() -> None:
    brain = SmallBrain(num_blocks=64, max_model_len=64)
    new_tokens(brain, "a", 16)
    new_tokens(brain, "b", [*range(8), *range(800, 808)])
    new_tokens(brain, "c", [900 + i for i in range(12)])
    events = brain.core.take_kv_events()
    parents = {event.hashes[0]: event.parent for event in events}
    seen = set()
    snapshot = brain.core.kv_snapshot()
    for run in snapshot:
        before = run.parent
        for block in run.hashes:
            assert parents[block] == before
            before = block
            seen.add(block)
    assert seen == parents.keys() and sum(len(run.hashes) for run in snapshot) == len(seen)
    assert len(snapshot) < len(seen) / 2


def test_a_failed_step_leaves_nothing_in_the_cache() -> None:
    brain = SmallBrain()
    brain.add("a", 16)
    brain.step("failed")
    assert brain.last("a").finish_reason == "error"
    assert brain.core.take_kv_events() == []
    assert new_tokens(brain, "b", 16) == 16


def test_reset_forgets_cached_blocks() -> None:
    brain = SmallBrain()
    new_tokens(brain, "a", 16)
    assert brain.core.reset_prefix_cache() == 16 // BLOCK
    brain.core.check()
    assert new_tokens(brain, "b", 16) == 16
