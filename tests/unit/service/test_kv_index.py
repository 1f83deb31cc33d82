"""KvIndex against a plain model: contiguous prefixes per instance, gaps, deaths, tiers."""

from __future__ import annotations

import random

from xllm.service.kv_index import EXPECT_TICKS, KvIndex
from xllm.types.ids import BlockHash
from xllm.types.kv_event import KvEvent, KvEventBatch


def block(number: int) -> BlockHash:
    return BlockHash(number.to_bytes(16, "little"))


def chain(*numbers: int) -> tuple[BlockHash, ...]:
    return tuple(block(n) for n in numbers)


def stored(sequence: int, *numbers: int, tier: str = "device") -> KvEventBatch:
    return KvEventBatch(sequence, (KvEvent("stored", chain(*numbers), tier=tier),))  # type: ignore[arg-type]


def removed(sequence: int, *numbers: int) -> KvEventBatch:
    return KvEventBatch(sequence, (KvEvent("removed", chain(*numbers)),))


def test_a_match_is_contiguous_per_instance() -> None:
    index = KvIndex()
    assert index.apply("a", stored(4, 1, 2, 4), is_snapshot=True)
    assert index.apply("b", stored(0, 1, 2, 3, 4), is_snapshot=True)
    assert index.apply("c", stored(0, 2, 3), is_snapshot=True)
    assert index.match(chain(1, 2, 3, 4, 5)) == {"a": 2.0, "b": 4.0}
    assert index.match(chain(9)) == index.match(()) == {}
    assert index.apply("b", removed(1, 2), is_snapshot=False)
    assert index.match(chain(1, 2, 3, 4, 5)) == {"a": 2.0, "b": 1.0}


def test_a_gap_forgets_the_instance_until_its_next_snapshot() -> None:
    index = KvIndex()
    assert not index.apply("a", stored(1, 1), is_snapshot=False), "no snapshot yet"
    assert index.apply("a", stored(7, 1), is_snapshot=True)
    assert index.apply("a", stored(8, 2), is_snapshot=False)
    assert not index.apply("a", stored(10, 3), is_snapshot=False)
    assert index.num_gaps == 1 and index.match(chain(1)) == {}
    assert not index.apply("a", stored(11, 3), is_snapshot=False), "still waiting"
    assert index.apply("a", stored(11, 1), is_snapshot=True)
    assert index.match(chain(1, 2)) == {"a": 1.0}


def test_the_dead_are_gone_at_once_and_swept_later() -> None:
    index = KvIndex()
    index.apply("a", stored(0, *range(100)), is_snapshot=True)
    index.apply("b", stored(0, *range(50)), is_snapshot=True)
    index.purge("a")
    assert index.match(chain(*range(100))) == {"b": 50.0}
    for _ in range(3):
        index.tick()
    assert index.num_blocks == 50
    index.purge("nobody")
    index.check()


def test_tiers_count_less_than_the_device() -> None:
    index = KvIndex()
    index.apply("a", stored(0, 1, 2), is_snapshot=True)
    index.apply("a", stored(1, 3, 4, tier="host"), is_snapshot=False)
    index.apply("b", stored(0, 1, tier="disk"), is_snapshot=True)
    match = index.match(chain(1, 2, 3, 4))
    assert abs(match["a"] - 3.4) < 1e-9 and abs(match["b"] - 0.4) < 1e-9


def test_cleared_forgets_one_instance_only() -> None:
    index = KvIndex()
    index.apply("a", stored(0, 1, 2), is_snapshot=True)
    index.apply("b", stored(0, 1), is_snapshot=True)
    index.apply("a", KvEventBatch(1, (KvEvent("cleared"), KvEvent("stored", chain(5)))), is_snapshot=False)
    assert index.match(chain(1)) == {"b": 1.0} and index.match(chain(5)) == {"a": 1.0}


def test_what_was_just_routed_is_expected_for_a_while() -> None:
    index = KvIndex()
    index.apply("a", stored(0), is_snapshot=True)
    index.expect("a", chain(1, 2))
    index.expect("unknown", chain(1, 2))
    assert index.match(chain(1, 2, 3)) == {"a": 2.0}
    for _ in range(2 * EXPECT_TICKS):
        index.tick()
    assert index.match(chain(1)) == {}


def test_random_events_agree_with_sets() -> None:
    rng = random.Random(3)
    index = KvIndex()
    model: dict[str, set[int]] = {}
    sequence: dict[str, int] = {}
    num_matches = 0
    for _ in range(4000):
        name = rng.choice("abcdef")
        roll = rng.random()
        some = [rng.randrange(30) for _ in range(3)]
        if name not in model or roll < 0.02:
            sequence[name] = rng.randrange(100)
            assert index.apply(name, stored(sequence[name], *some), is_snapshot=True)
            model[name] = set(some)
        elif roll < 0.05:
            index.purge(name)
            del model[name]
        elif roll < 0.6:
            sequence[name] += 1
            assert index.apply(name, stored(sequence[name], *some), is_snapshot=False)
            model[name] |= set(some)
        elif roll < 0.8:
            sequence[name] += 1
            assert index.apply(name, removed(sequence[name], *some), is_snapshot=False)
            model[name] -= set(some)
        elif roll < 0.82:
            index.tick()
        prefix = rng.sample(range(30), 5)
        expected = {}
        for other, held in model.items():
            depth = next((i for i, b in enumerate(prefix) if b not in held), 5)
            if depth:
                expected[other] = float(depth)
        assert index.match(chain(*prefix)) == expected
        num_matches += bool(expected)
        index.check()
    assert num_matches > 1000


def test_bits_are_used_again_however_many_come_and_go() -> None:
    rng = random.Random(5)
    index = KvIndex()
    held: dict[str, set[int]] = {}
    sequence: dict[str, int] = {}
    expecting: set[str] = set()
    num_matches = num_expected = 0
    for number in range(6000):
        name = rng.choice(list(held)) if len(held) == 8 else f"e{number}"
        roll = rng.random()
        if name not in held:
            held[name], sequence[name] = {rng.randrange(12) for _ in range(9)}, 0
            assert index.apply(name, stored(0, *held[name]), is_snapshot=True)
        elif roll < 0.5:
            index.purge(name)
            del held[name]
            expecting.discard(name)
        elif roll < 0.6:
            sequence[name] += 1
            assert index.apply(name, KvEventBatch(sequence[name], (KvEvent("cleared"),)), is_snapshot=False)
            held[name] = set()
        else:
            index.expect(name, chain(1000))
            expecting.add(name)
        for _ in range(rng.randrange(4)):
            index.tick()
        index.check()
        prefix = rng.sample(range(12), 4)
        depths = {
            each: next((i for i, b in enumerate(prefix) if b not in own), 4) for each, own in held.items()
        }
        assert index.match(chain(*prefix)) == {each: float(depth) for each, depth in depths.items() if depth}
        assert set(index.match(chain(1000))) <= expecting
        num_matches += any(depths.values())
        num_expected += bool(index.match(chain(1000)))
    assert number > 5000 and num_matches > 4000 and num_expected > 1000
    assert index.num_bits <= 8 + 24, index.num_bits
