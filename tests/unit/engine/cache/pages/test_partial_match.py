"""A prefix that ends inside a page: its tokens are copied, not computed."""

from __future__ import annotations

from tests.fakes.small_brain import SmallBrain
from xllm.engine.cache.pages.partial_match import PartialMatches
from xllm.types.ids import BlockHash

ROOT, A, B, C = (BlockHash(bytes([i]) * 16) for i in range(4))


def new_tokens(brain: SmallBrain, name: str, prompt: list[int], **fields: object) -> int:
    before = brain.body.num_tokens_computed
    brain.add(name, prompt, **({"max_tokens": 1} | fields))  # type: ignore[arg-type]
    brain.run()
    return brain.body.num_tokens_computed - before


def test_the_page_with_most_of_the_tokens_is_found() -> None:
    pages = PartialMatches()
    for name, tokens in ((A, [1, 2, 9, 9]), (B, [1, 2, 3, 9]), (C, [7, 7, 7, 7])):
        pages.promise(name, ROOT, tokens)
        assert pages.find(ROOT, [1, 2, 3]) is None or name is not A  # a promise is not a page yet
        pages.commit(name)
    assert pages.find(ROOT, [1, 2, 3, 4]) == (B, 3)
    assert pages.find(ROOT, [1, 2]) is not None
    assert pages.find(ROOT, [5]) is None and pages.find(A, [1]) is None and pages.find(ROOT, []) is None
    pages.drop(B)
    assert pages.find(ROOT, [1, 2, 3, 4]) == (A, 2)
    pages.drop(A)
    pages.drop(C)
    assert not list(pages.names()) and pages.find(ROOT, [7]) is None


def test_tokens_past_the_last_whole_page_are_copied() -> None:
    brain = SmallBrain(xtensor=True)
    assert new_tokens(brain, "a", list(range(16))) == 16
    assert new_tokens(brain, "b", [*range(10), 500, 501, 502]) == 3
    assert brain.body.num_copies == 1
    assert brain.last("b").usage.num_cached_tokens == 10  # type: ignore[union-attr]
    assert new_tokens(brain, "c", [*range(3), 600, 601]) == 2  # inside the first page
    plain = SmallBrain()
    assert new_tokens(plain, "b", [*range(10), 500, 501, 502]) == 13
    assert plain.tokens("b") == brain.tokens("b")


def test_salts_keep_first_pages_apart() -> None:
    brain = SmallBrain(xtensor=True)
    assert new_tokens(brain, "a", list(range(16)), cache_salt="x") == 16
    assert new_tokens(brain, "b", [*range(3), 600], cache_salt="y") == 4
    assert new_tokens(brain, "c", [*range(3), 600], cache_salt="x") == 1


def test_what_a_failed_step_promised_is_not_copied() -> None:
    brain = SmallBrain(xtensor=True)
    brain.add("a", 16)
    brain.step("failed")
    assert new_tokens(brain, "b", [*range(10), 500]) == 11


def test_a_reset_forgets_pages_too() -> None:
    brain = SmallBrain(xtensor=True)
    new_tokens(brain, "a", list(range(16)))
    brain.core.reset_prefix_cache()
    assert new_tokens(brain, "b", [*range(10), 500]) == 11
