"""PrefixFeeds: large batches in slices, gaps told once, nothing of a lost feed applied later."""

from __future__ import annotations

import random
from typing import Any

import pytest

from xllm.service.prefix_feeds import SLICE_BLOCKS, PrefixFeeds
from xllm.types.ids import BlockHash
from xllm.types.kv_event import KvEvent, KvEventBatch
from xllm.types.wire import KvEvents


def block(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "little"))


def stored(sequence: int, numbers: range, *, per_event: int = 1, is_snapshot: bool = False) -> KvEvents:
    names = [block(number) for number in numbers]
    events = [
        KvEvent("stored", tuple(names[start : start + per_event]))
        for start in range(0, len(names), per_event)
    ]
    return KvEvents(batch=KvEventBatch(sequence, tuple(events)), is_snapshot=is_snapshot)


@pytest.mark.parametrize("per_event", [1, 700, 10**9])
def test_a_large_snapshot_goes_in_by_slices_and_what_follows_waits_behind_it(per_event: int) -> None:
    feeds = PrefixFeeds()
    num = 3 * SLICE_BLOCKS + 5
    feeds.take_events("a", stored(7, range(num), per_event=per_event, is_snapshot=True))
    assert feeds.has_backlog
    removed = KvEvent("removed", (block(0),))
    feeds.take_events("a", KvEvents(batch=KvEventBatch(8, (removed,))))
    feeds.take_events("b", stored(0, range(2), is_snapshot=True))
    assert feeds.index.match([block(0), block(1)]) == {"b": 2.0}, "the others do not wait"
    sizes, before = [], 2
    while feeds.has_backlog:
        feeds.apply_slice()
        sizes.append(feeds.index.num_blocks - before)
        before = feeds.index.num_blocks
    assert 0 < max(sizes) <= SLICE_BLOCKS and sum(sizes) == num - 2, "the removed one is another's, too"
    assert feeds.index.match([block(0)]) == {"b": 1.0}
    assert feeds.index.match([block(1), block(2)]) == {"a": 2.0, "b": 1.0}
    assert feeds.index.match([block(num - 1)]) == {"a": 1.0} and not feeds.take_gaps()


def test_a_gap_is_told_once_until_its_snapshot_comes() -> None:
    feeds = PrefixFeeds()
    feeds.take_events("a", stored(3, range(2), is_snapshot=True))
    feeds.take_events("a", stored(5, range(2, 3)))
    assert feeds.take_gaps() == ["a"]
    for sequence in range(6, 20):
        feeds.take_events("a", stored(sequence, range(sequence, sequence + 1)))
    assert feeds.take_gaps() == [] and feeds.index.match([block(0)]) == {}
    feeds.take_events("a", stored(19, range(9), is_snapshot=True))
    feeds.take_events("a", stored(20, range(9, 10)))
    assert feeds.take_gaps() == [] and feeds.index.match([block(n) for n in range(12)]) == {"a": 10.0}
    feeds.take_events("a", stored(22, range(1)))
    assert feeds.take_gaps() == ["a"], "the next gap is another one"
    assert feeds.index.num_gaps == 2


def test_who_could_not_be_asked_is_asked_again() -> None:
    feeds = PrefixFeeds()
    feeds.take_events("a", stored(1, range(1)))
    assert feeds.take_gaps() == ["a"]
    feeds.on_no_snapshot("a")
    feeds.take_events("a", stored(2, range(1)))
    assert feeds.take_gaps() == ["a"]


def test_nothing_of_a_lost_feed_is_applied_later() -> None:
    feeds = PrefixFeeds()
    feeds.take_events("a", stored(0, range(2 * SLICE_BLOCKS), is_snapshot=True))
    feeds.apply_slice()
    feeds.on_lost("a")
    assert not feeds.has_backlog and feeds.index.match([block(0)]) == {}
    feeds.take_events("a", stored(0, range(2 * SLICE_BLOCKS), is_snapshot=True))
    feeds.apply_slice()
    feeds.take_events("a", stored(4, range(10), is_snapshot=True))
    assert not feeds.has_backlog, "a newer snapshot takes the place of the older one"
    assert feeds.index.match([block(n) for n in range(20)]) == {"a": 10.0}


def test_in_slices_or_at_once_the_index_is_the_same() -> None:
    rng = random.Random(2)
    whole, sliced = PrefixFeeds(), PrefixFeeds(slice_blocks=3)
    num_slices = 0
    for sequence in range(300):
        is_snapshot = rng.random() < 0.1 or not sequence
        events = []
        for _ in range(rng.randint(1, 6)):
            kind: Any = rng.choice(["stored", "stored", "removed", "cleared"])
            names = tuple(block(rng.randrange(30)) for _ in range(rng.randint(0, 8)))
            events.append(KvEvent(kind, () if kind == "cleared" else names))
        found = KvEvents(batch=KvEventBatch(sequence, tuple(events)), is_snapshot=is_snapshot)
        whole.take_events("a", found)
        sliced.take_events("a", found)
        assert not whole.has_backlog
        while sliced.has_backlog:
            sliced.apply_slice()
            num_slices += 1
        for number in range(30):
            assert whole.index.match([block(number)]) == sliced.index.match([block(number)])
        sliced.index.check()
    assert num_slices > 300
