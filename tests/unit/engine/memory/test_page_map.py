"""Orders in, block numbers out; what goes wrong on the way costs a copy, not a row."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.fakes.batches import make_request
from tests.fakes.page_mapper import SimulatedMapper
from xllm.engine.memory.page_map import LateBackground, PageMap, ThreadBackground
from xllm.errors import DeadlineExceeded, InternalError
from xllm.types.batch import Batch, BatchRow, NewRow, PageOrder
from xllm.types.pages import PageGeometry

GEOMETRY = PageGeometry(
    page_bytes=65536, tokens_per_page=4, pages_per_range=8, num_ranges=3, max_mappings=100
)
LINEAR = 24


def make(refusal: float = 0.0) -> tuple[PageMap, SimulatedMapper]:
    mapper = SimulatedMapper(GEOMETRY, refusal=refusal)
    return PageMap(mapper, GEOMETRY, LateBackground()), mapper


def new_row(row: int, range_id: int, *pages: int) -> NewRow:
    request = make_request(str(row), (1,))
    return NewRow(
        row=row, seq=row, request=request, choice=0, token_ids=(1,), block_tables=(pages,), range_id=range_id
    )


def batch(
    step: int, *rows: BatchRow, new: tuple[NewRow, ...] = (), orders: tuple[PageOrder, ...] = ()
) -> Batch:
    return Batch(step=step, rows=rows, new_rows=new, page_orders=orders)


def maps(range_id: int, *pages: int, first: int = 0, is_ahead: bool = False) -> tuple[PageOrder, ...]:
    return tuple(PageOrder("map", range_id, first + i, p, is_ahead) for i, p in enumerate(pages))


def test_pages_become_block_numbers_when_they_are_needed() -> None:
    pages, _ = make()
    first = pages.place(
        batch(1, BatchRow(0, 0, 6, (), 0), new=(new_row(0, 1, 9, 5, 7),), orders=maps(1, 9, 5, 7))
    )
    assert first.new_rows[0].block_tables == ((),) and first.page_orders == ()
    assert first.rows[0].new_block_ids == (
        (8, 9),
    )  # six tokens are in two pages; the third is not needed yet
    plain = batch(2, BatchRow(0, 6, 1, ()))
    assert pages.place(plain) is plain
    grown = pages.place(batch(3, BatchRow(0, 7, 2, ((3,),)), orders=maps(1, 3, first=3)))
    assert grown.rows[0].new_block_ids == ((10,),)
    assert (pages.num_mapped, pages.num_repaired) == (4, 0)


def test_a_page_has_one_name_at_all_its_numbers() -> None:
    """Two ranges and the linear view; places where nothing is mapped have no page's name."""
    pages, _ = make()
    pages.place(batch(1, BatchRow(0, 0, 8, ()), new=(new_row(0, 1, 9, 5),), orders=maps(1, 9, 5)))
    pages.place(batch(2, BatchRow(1, 0, 8, ()), new=(new_row(1, 2, 9, 7),), orders=maps(2, 9, 7)))
    names = pages.names_of(np.array([[8, 9, LINEAR + 9], [16, 17, LINEAR + 5]], dtype=np.int32))
    assert names[0, 0] == names[1, 0] == names[0, 2] and names[0, 1] == names[1, 2] != names[1, 1]
    assert len({*names.reshape(-1).tolist()}) == 3 and pages.names_of(np.zeros((1, 1), np.int32)) == 0


def test_orders_ahead_are_done_before_the_next_step() -> None:
    pages, mapper = make()
    orders = maps(1, 9) + maps(1, 5, first=1, is_ahead=True)
    pages.place(batch(1, BatchRow(0, 0, 4, ()), new=(new_row(0, 1, 9, 5),), orders=orders))
    assert (1, 1) not in mapper.mapped
    placed = pages.place(batch(2, BatchRow(0, 4, 1, ())))
    assert mapper.mapped[1, 1] == 5 and placed.rows[0].new_block_ids == ((9,),)
    assert (pages.num_ahead, pages.num_repaired) == (1, 0)


def test_an_order_ahead_that_is_needed_at_once_is_carried_out_once() -> None:
    pages, mapper = make()
    orders = maps(1, 9) + maps(1, 5, first=1, is_ahead=True)
    placed = pages.place(batch(1, BatchRow(0, 0, 5, ()), new=(new_row(0, 1, 9, 5),), orders=orders))
    assert placed.rows[0].new_block_ids == ((8, 9),)
    mapper.refusal = 1.0  # nothing under a row is mapped again
    pages.wait()
    assert mapper.mapped == {(1, 0): 9, (1, 1): 5} and (pages.num_mapped, pages.num_repaired) == (2, 0)


def test_what_is_mapped_is_not_mapped_again() -> None:
    """The brain took an unmapping back before it left; a row may be at the place when the order is carried out."""
    pages, mapper = make()
    pages.place(batch(1, BatchRow(0, 0, 8, ()), new=(new_row(0, 1, 9, 5),), orders=maps(1, 9, 5)))
    mapper.refusal = 1.0
    orders = maps(1, 5, first=1, is_ahead=True)
    placed = pages.place(batch(2, BatchRow(0, 0, 8, ()), new=(new_row(0, 1, 9, 5),), orders=orders))
    pages.wait()
    assert placed.rows[0].new_block_ids == ((8, 9),) and mapper.mapped[1, 1] == 5 and mapper.num_refused == 0


def test_an_order_that_was_never_carried_out_is_made_good() -> None:
    pages, mapper = make()
    placed = pages.place(batch(5, BatchRow(0, 0, 5, ()), new=(new_row(0, 2, 4, 6),)))
    assert placed.rows[0].new_block_ids == ((16, 17),)
    assert mapper.mapped == {(2, 0): 4, (2, 1): 6} and pages.num_repaired == 2


def test_a_refused_page_is_reached_through_the_linear_view() -> None:
    pages, mapper = make(refusal=1.0)
    placed = pages.place(batch(1, BatchRow(0, 0, 4, ()), new=(new_row(0, 1, 9),), orders=maps(1, 9)))
    assert placed.rows[0].new_block_ids == ((LINEAR + 9,),)
    assert mapper.page_of(LINEAR + 9) == 9
    mapper.refusal = 0.0
    placed = pages.place(batch(2, BatchRow(0, 4, 1, ((3,),)), orders=maps(1, 3, first=1)))
    assert placed.rows[0].new_block_ids == ((9,),)  # the next page has its place


def test_what_was_at_a_place_is_not_believed_after_a_refusal() -> None:
    pages, mapper = make()
    pages.place(batch(1, BatchRow(0, 0, 4, ()), new=(new_row(0, 1, 9),), orders=maps(1, 9)))
    mapper.refusal = 1.0
    pages.place(batch(2, BatchRow(1, 0, 4, ()), new=(new_row(1, 2, 4),), orders=maps(1, 5) + maps(2, 4)))
    mapper.refusal = 0.0
    placed = pages.place(batch(3, BatchRow(0, 0, 4, ()), new=(new_row(0, 1, 9),)))
    assert placed.rows[0].new_block_ids == ((8,),) and mapper.mapped[1, 0] == 9


def test_unmapping() -> None:
    pages, mapper = make()
    pages.place(batch(1, BatchRow(0, 0, 4, ()), new=(new_row(0, 1, 9),), orders=maps(1, 9)))
    pages.place(batch(2, orders=(PageOrder("unmap", 1, 0, 9, True),)))
    assert mapper.mapped  # it is in no hurry
    pages.wait()
    assert not mapper.mapped and pages.num_unmapped == 1


def test_rows_without_a_range_or_beyond_its_end_are_our_bugs() -> None:
    pages, _ = make()
    with pytest.raises(InternalError, match="range -1"):
        pages.place(batch(1, BatchRow(0, 0, 4, ()), new=(new_row(0, -1, 9),)))
    with pytest.raises(InternalError, match="never introduced"):
        pages.place(batch(2, BatchRow(5, 0, 4, ())))
    with pytest.raises(InternalError, match="page 8 of"):
        pages.place(batch(3, BatchRow(0, 0, 36, ()), new=(new_row(0, 1, *range(9)),)))


def test_the_thread_runs_jobs_one_by_one_and_hands_on_what_they_raise() -> None:
    background = ThreadBackground()
    background.wait()
    names: list[str] = []
    background.begin(lambda: names.append(threading.current_thread().name))
    background.wait()
    assert names == ["xllm-pages"]
    background.begin(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    background.wait()


def test_a_thread_that_hangs_does_not_hang_the_step() -> None:
    gate = threading.Event()
    background = ThreadBackground(timeout_s=0.01)
    background.begin(lambda: gate.wait(20) and None)
    with pytest.raises(DeadlineExceeded, match="mapping KV pages"):
        background.wait()
    gate.set()
