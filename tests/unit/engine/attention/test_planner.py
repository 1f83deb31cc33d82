"""AttentionPlanner: groups, gather indices, masks, stale slots; checked by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xllm.engine.attention import AttentionMetadata, AttentionPlanner, RowGroup

HEADS, SIZE = 2, 4


def make(windows: tuple[int | None, ...] = (None,), max_gather_bytes: int = 1 << 20) -> AttentionPlanner:
    return AttentionPlanner(
        block_size=SIZE,
        num_kv_heads=HEADS,
        head_dim=8,
        dtype=torch.float32,
        windows=windows,
        device=torch.device("cpu"),
        max_gather_bytes=max_gather_bytes,
    )


def plan(
    planner: AttentionPlanner, queries: list[int], lengths: list[int]
) -> tuple[AttentionMetadata, np.ndarray]:
    width = -(-max(lengths) // SIZE)
    tables = np.random.default_rng(0).permutation(len(lengths) * width).reshape(len(lengths), width)
    tables = tables.astype(np.int32)
    slots = [
        tables[r, t // SIZE] * SIZE + t % SIZE
        for r, (q, n) in enumerate(zip(queries, lengths, strict=True))
        for t in range(n - q, n)
    ]
    return planner.plan(queries, lengths, tables, np.array(slots, dtype=np.int64)), tables


def tokens_of(group: RowGroup, num_tokens: int) -> list[int]:
    everything = torch.arange(num_tokens)
    return everything[group.tokens].tolist()  # type: ignore[no-any-return]


def visible_slots(group: RowGroup) -> list[list[set[int]]]:
    """Per row and query, the pool rows (head 0, as slot numbers) that are visible."""
    gather = group.gather_rows.view(group.num_rows, HEADS, -1)
    slots = (gather[:, 0, :, None] // HEADS * SIZE + torch.arange(SIZE)).flatten(1)
    seen: list[list[set[int]]] = [[set() for _ in range(group.num_queries)] for _ in range(group.num_rows)]
    for r in range(group.num_rows):
        if group.tiles:
            q = 0
            for tile in group.tiles:
                for row in tile.mask[0, 0]:
                    keys = slots[r, tile.first_key : tile.first_key + len(row)]
                    seen[r][q] = set(keys[row].tolist())
                    q += 1
            continue
        for q in range(group.num_queries):
            shown = torch.ones(slots.shape[1], dtype=torch.bool)
            if group.hidden is not None:
                shown = ~group.hidden[r, 0, 0, q]
            seen[r][q] = set(slots[r][shown].tolist())
            assert len(seen[r][q]) == int(shown.sum()), "a padded copy of a block is visible"
    return seen


CASES = [
    ([1], [1]),
    ([1, 1, 1], [5, 8, 9]),
    ([1, 1, 1, 1], [400, 3, 401, 390]),
    ([3, 1, 3, 40, 1], [3, 12, 30, 45, 1]),
    ([16, 17, 300], [16, 20, 301]),
    ([1, 1, 1], [4, 4, 4]),
]


@pytest.mark.parametrize("window", [None, 1, 6, 50])
@pytest.mark.parametrize(("queries", "lengths"), CASES)
@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_every_query_sees_exactly_its_past(
    queries: list[int], lengths: list[int], window: int | None, limit: int
) -> None:
    metadata, tables = plan(make((window,), limit), queries, lengths)
    starts = np.cumsum([0, *queries])
    seen_tokens: list[int] = []
    for group in metadata.groups[window]:
        tokens = tokens_of(group, int(starts[-1]))
        seen_tokens += tokens
        visible = visible_slots(group)
        for r in range(group.num_rows):
            for q in range(group.num_queries):
                token = tokens[r * group.num_queries + q]
                row = int(np.searchsorted(starts, token, side="right")) - 1
                position = lengths[row] - queries[row] + token - int(starts[row])
                first = 0 if window is None else max(position - window + 1, 0)
                expected = {int(tables[row, t // SIZE]) * SIZE + t % SIZE for t in range(first, position + 1)}
                assert visible[r][q] == expected
    assert sorted(seen_tokens) == list(range(int(starts[-1])))


def test_stale_rows_are_exactly_the_slots_behind_the_end() -> None:
    metadata, tables = plan(make(), [1, 1], [5, 10])
    (group,) = metadata.groups[None]
    assert group.stale_rows is not None
    length = group.gather_rows.numel() // (group.num_rows * HEADS) * SIZE
    stale = set(group.stale_rows.tolist())
    gather = group.gather_rows.view(group.num_rows, HEADS, -1)
    order = [0, 1] if group.tokens == slice(0, 2) else list(group.tokens)  # type: ignore[arg-type]
    for r, row in enumerate(order):
        valid = {(int(tables[row, t // SIZE]), t % SIZE) for t in range([5, 10][row])}
        for h in range(HEADS):
            for key in range(length):
                place = (int(gather[r, h, key // SIZE]) // HEADS, key % SIZE)
                assert ((r * HEADS + h) * length + key in stale) == (place not in valid)


def test_blocks_behind_the_window_are_not_read() -> None:
    planner = make((5,))
    tables = np.array([[-1, -1, 7, 3]], dtype=np.int32)
    metadata = planner.plan([1], [14], tables, np.array([3 * SIZE + 1], dtype=np.int64))
    (group,) = metadata.groups[5]
    assert set((group.gather_rows // HEADS).tolist()) == {7, 3}


def test_several_windows_are_planned_once_each() -> None:
    metadata, _ = plan(make((None, 6, None, 6)), [1, 2], [9, 9])
    assert set(metadata.groups) == {None, 6}
