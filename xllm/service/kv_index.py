"""KvIndex: which instance holds which cached blocks, from the instances' KV events.

An instance's feed begins with a snapshot; batches are numbered without gaps. On a gap everything known of the instance
is dropped and ``apply`` says so: the caller subscribes again. Events arrive after the step that filled a block; until
then the prefix of a request that was just routed is *expected* at its instance, so that a burst stays together.

Each feed has a bit of its own; a block's entry is the set of bits that hold it. A dead feed's bit is masked out at
once, swept from the entries bit by bit in ``tick``, and given to another feed once nothing holds it any more. So a
mask is as wide as there were feeds and unswept bits at one time, however many feeds have come and gone.

INVARIANTS
- ``match`` never names an instance whose feed is broken or purged.
- A match is contiguous per instance: block i counts only where blocks 0..i-1 are too.
- Neither an entry nor an expectation holds a bit that is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xllm.types.ids import BlockHash, InstanceId
from xllm.types.kv_event import KvEvent, KvEventBatch

TIER_WEIGHTS = {"device": 1.0, "host": 0.7, "disk": 0.4}
"""What a block in a tier is worth next to one that is on the device already."""
EXPECT_TICKS = 2
"""An expected prefix is believed for one to two times as many ticks."""
_SWEEP_ENTRIES = 4_000


@dataclass(slots=True)
class _Feed:
    bit: int
    next_sequence: int


class KvIndex:
    """See the module. Blocks of KV group 0 are counted: they are there for every token of a prefix."""

    def __init__(self) -> None:
        self._tiers: dict[str, dict[BlockHash, int]] = {tier: {} for tier in TIER_WEIGHTS}
        self._used: tuple[tuple[float, dict[BlockHash, int]], ...] = ()
        self._masks: dict[int, int] = {}
        self._feeds: dict[InstanceId, _Feed] = {}
        self._names: dict[int, InstanceId] = {}
        self._alive = 0
        self._num_bits = 0
        self._free = 0
        """Bits that nothing holds."""
        self._dead = 0
        """Bits of purged feeds that the next sweep takes."""
        self._sweeping = 0
        """Those that the present one takes."""
        self._swept: list[tuple[int, int]] = []
        """(turn of the expectations, bits): gone from the entries then, and from the expectations two turns later."""
        self._num_turns = 0
        self._expected: tuple[dict[BlockHash, int], dict[BlockHash, int]] = ({}, {})
        self._num_ticks = 0
        self._sweep: list[tuple[dict[BlockHash, int], list[BlockHash]]] = []
        self.num_gaps = 0
        """Feeds that had to begin anew."""

    @property
    def num_blocks(self) -> int:
        """Entries, those of dead feeds that are not swept yet included."""
        return sum(map(len, self._tiers.values()))

    @property
    def num_bits(self) -> int:
        """Width of a mask."""
        return self._num_bits

    def __contains__(self, instance: object) -> bool:
        return instance in self._feeds

    def apply(self, instance: InstanceId, batch: KvEventBatch, *, is_snapshot: bool) -> bool:
        """Take a batch; False: batches are missing, subscribe again."""
        feed = self._feeds.get(instance)
        if is_snapshot:
            self.purge(instance)
            feed = self._open(instance, batch.sequence)
        elif feed is None or batch.sequence != feed.next_sequence:
            self.num_gaps += feed is not None
            self.purge(instance)
            return False
        feed.next_sequence = batch.sequence + 1
        self._write(feed, batch.events)
        return True

    def extend(self, instance: InstanceId, events: Sequence[KvEvent]) -> None:
        """More of the batch that was applied last, for who applies a large one in slices."""
        self._write(self._feeds[instance], events)

    def purge(self, instance: InstanceId) -> None:
        """Forget what an instance holds: it died, restarted or lost its place in the feed."""
        feed = self._feeds.pop(instance, None)
        if feed is not None:
            self._retire(feed.bit)

    def expect(self, instance: InstanceId, hashes: Sequence[BlockHash]) -> None:
        """A request with this prefix was just sent there."""
        feed = self._feeds.get(instance)
        if feed is not None:
            newest = self._expected[0]
            for block in hashes:
                newest[block] = newest.get(block, 0) | feed.bit

    def match(self, hashes: Sequence[BlockHash]) -> Mapping[InstanceId, float]:
        """Per instance, the length of its contiguous prefix in blocks, each weighted by its tier; none: not named."""
        found: dict[InstanceId, float] = {}
        values: dict[int, float] = {}
        left, depth = self._alive, 0.0
        newest, older = self._expected
        used = self._used
        is_plain = len(used) <= 1 and all(weight == 1.0 for weight, _ in used)
        first = used[0][1] if used else {}
        for block in hashes:
            if is_plain:
                holders = first.get(block, 0)
            else:
                holders = 0
                for weight, entries in used:
                    fresh = entries.get(block, 0) & left & ~holders
                    holders |= fresh
                    if weight != 1.0:
                        for bit in _bits(fresh):
                            values[bit] = values.get(bit, 0.0) + weight - 1.0
            if newest or older:
                holders |= newest.get(block, 0) | older.get(block, 0)
            holders &= left
            if holders != left:
                if depth:
                    for bit in _bits(left & ~holders):
                        found[self._names[bit]] = depth + values.get(bit, 0.0)
                left = holders
                if not left:
                    break
            depth += 1.0
        if depth:
            for bit in _bits(left):
                found[self._names[bit]] = depth + values.get(bit, 0.0)
        return found

    def tick(self) -> None:
        """Let expectations age and sweep a part of what dead feeds left."""
        self._num_ticks += 1
        if self._num_ticks % EXPECT_TICKS == 0:
            self._expected = ({}, self._expected[0])
            self._num_turns += 1
        while self._swept and self._swept[0][0] + 2 <= self._num_turns:
            self._free |= self._swept.pop(0)[1]
        if not self._sweep and self._dead:
            self._sweeping, self._dead = self._dead, 0
            self._sweep = [(entries, list(entries)) for entries in self._tiers.values() if entries]
        if self._sweep:
            self._sweep_some()
        if self._sweeping and not self._sweep:
            self._swept.append((self._num_turns, self._sweeping))
            self._sweeping = 0
        if len(self._masks) > 4096:
            self._masks.clear()  # only shares objects; sets in use come back as they are written

    def check(self) -> None:
        """Raise AssertionError where the invariants do not hold."""
        assert self._alive == sum(feed.bit for feed in self._feeds.values())
        assert self._names == {feed.bit: name for name, feed in self._feeds.items()}
        kinds = [self._alive, self._free, self._dead, self._sweeping, *(bits for _, bits in self._swept)]
        assert sum(kinds) == (1 << self._num_bits) - 1 and sum(map(int.bit_count, kinds)) == self._num_bits
        for entries in (*self._tiers.values(), *self._expected):
            assert not any(mask & self._free for mask in entries.values())

    # -- private --

    def _open(self, instance: InstanceId, sequence: int) -> _Feed:
        feed = self._feeds[instance] = _Feed(self._take_bit(instance), sequence)
        return feed

    def _take_bit(self, instance: InstanceId) -> int:
        """The lowest free bit, so that masks stay narrow."""
        bit = self._free & -self._free
        self._free ^= bit
        if not bit:
            bit = 1 << self._num_bits
            self._num_bits += 1
        self._names[bit] = instance
        self._alive |= bit
        return bit

    def _retire(self, bit: int) -> None:
        """No feed has it any more; entries may hold it until they are swept."""
        del self._names[bit]
        self._alive ^= bit
        self._dead |= bit

    def _write(self, feed: _Feed, events: Sequence[KvEvent]) -> None:
        bit, masks = feed.bit, self._masks
        for event in events:
            if event.group != 0:
                continue
            if event.kind == "cleared":
                # What it held goes the way of a dead feed's: out of sight at once, and swept later.
                name = self._names[bit]
                self._retire(bit)
                bit = feed.bit = self._take_bit(name)
                continue
            entries = self._tiers[event.tier]
            is_stored = event.kind == "stored"
            for block in event.hashes:
                before = entries.get(block, 0)
                after = before | bit if is_stored else before & ~bit
                if after:
                    entries[block] = masks.setdefault(after, after)  # one int object per set of instances
                elif before:
                    del entries[block]
        self._used = tuple((TIER_WEIGHTS[tier], found) for tier, found in self._tiers.items() if found)

    def _sweep_some(self) -> None:
        entries, keys = self._sweep[-1]
        alive, masks = self._alive, self._masks
        chunk = keys[-_SWEEP_ENTRIES:]
        del keys[-_SWEEP_ENTRIES:]
        for block in chunk:
            mask = entries.get(block, 0)
            kept = mask & alive
            if kept:
                entries[block] = masks.setdefault(kept, kept)
            elif mask:
                del entries[block]
        if not keys:
            self._sweep.pop()


def _bits(mask: int) -> list[int]:
    """The single bits of a mask."""
    out = []
    while mask:
        bit = mask & -mask
        out.append(bit)
        mask ^= bit
    return out
