"""PageMap: carries out page orders and says where the blocks of every row can be reached.

It is the body's own record of what is mapped. Orders that a step needs are carried out before its forward; orders that
are ahead run on a thread of their own while the step computes, and are waited for before anything else happens. Then
every row's pages are compared with the record: what an order should have mapped and did not (its step was never run)
is mapped now, and a page that cannot be mapped is reached through the linear view of all pages instead. So a refusal
of the system costs its row a copy of that page per layer, nothing else.

To the rest of the body a page is a block whose number says where it lies: ``range * pages_per_range + offset`` in its
range, ``num_ranges * pages_per_range + page`` in the linear view.

INVARIANTS
- A block number given out for a range stays valid until the row is freed: only orders change a place, and the brain
  orders nothing for places under a table.
- The record never says that a place is mapped while it is not.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from msgspec import structs

from xllm.engine.memory.mapper import Mapper
from xllm.errors import DeadlineExceeded, InternalError
from xllm.types.batch import Batch, BatchRow, NewRow, PageOrder
from xllm.types.pages import PageGeometry

_LOG = logging.getLogger(__name__)
AHEAD_TIMEOUT_S = 30.0


class Background(Protocol):
    """Runs one job at a time beside the step."""

    def begin(self, job: Callable[[], None]) -> None:
        """Start a job; the one before must have been waited for."""

    def wait(self) -> None:
        """Return when the job is done, at once if there is none; raises what it raised, or DeadlineExceeded."""


class LateBackground:
    """Runs the job when it is waited for, as late as allowed: for tests and simulations without threads."""

    def __init__(self) -> None:
        self._job: Callable[[], None] | None = None

    def begin(self, job: Callable[[], None]) -> None:
        """Keep it."""
        assert self._job is None, "a job is pending"
        self._job = job

    def wait(self) -> None:
        """Do it now."""
        job, self._job = self._job, None
        if job is not None:
            job()


class ThreadBackground:
    """A daemon thread; it ends when the object is gone."""

    def __init__(self, timeout_s: float = AHEAD_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._is_busy = False
        work = (self._jobs, self._ends)
        threading.Thread(target=_work, args=work, name="xllm-pages", daemon=True).start()

    def begin(self, job: Callable[[], None]) -> None:
        """Hand it to the thread."""
        assert not self._is_busy, "a job is running"
        self._is_busy = True
        self._jobs.put(job)

    def wait(self) -> None:
        """See :class:`Background`."""
        if not self._is_busy:
            return
        try:
            error = self._ends.get(timeout=self._timeout_s)
        except queue.Empty:
            raise DeadlineExceeded(
                f"mapping KV pages ahead took more than {self._timeout_s:g} s", hint="use --kv-layout paged"
            ) from None
        self._is_busy = False
        if error is not None:
            raise error

    def __del__(self) -> None:
        self._jobs.put(None)


def _work(
    jobs: queue.SimpleQueue[Callable[[], None] | None], ends: queue.SimpleQueue[BaseException | None]
) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except Exception as error:
            ends.put(error)
        else:
            ends.put(None)
        del job


class _RowPages:
    """Pages of a row, and how many of them the rest of the body knows."""

    __slots__ = ("num_ready", "pages", "range_id")

    def __init__(self, range_id: int, pages: Sequence[int]) -> None:
        self.range_id = range_id
        self.pages = list(pages)
        self.num_ready = 0


class PageMap:
    """See the module; one thread calls :meth:`place`."""

    def __init__(self, mapper: Mapper, geometry: PageGeometry, background: Background) -> None:
        self.num_mapped = 0
        """Calls that mapped a page."""
        self.num_ahead = 0
        """Of these, while a step was running."""
        self.num_unmapped = 0
        self.num_repaired = 0
        """Pages mapped without an order, after steps that were not run."""
        self.num_refused = 0
        """Calls that the system refused; the pages are reached through the linear view."""
        self.mapper = mapper
        self._geometry = geometry
        self._background = background
        # Of every place its page + 1, 0: none. Zeros that nobody touches cost no memory.
        self._page_at = np.zeros(geometry.num_ranges * geometry.pages_per_range, dtype=np.int32)
        self._ahead: dict[tuple[int, int], PageOrder] = {}
        self._rows: dict[int, _RowPages] = {}

    def place(self, batch: Batch) -> Batch:
        """Carry out the page orders of a step; returns it without them and with block numbers instead of pages.

        Raises:
            InternalError: a row without a range, or beyond its end.
        """
        self._background.wait()
        self._ahead.clear()
        for order in batch.page_orders:
            if order.is_ahead:
                self._ahead[order.range_id, order.offset] = order
            else:
                self._carry_out(order)
        for freed in batch.freed_rows:
            self._rows.pop(freed, None)
        new_rows = tuple(self._introduce(new) for new in batch.new_rows)
        rows, is_changed = [], bool(new_rows or batch.page_orders)
        for row in batch.rows:
            ready = self._make_ready(row)
            is_changed |= ready is not row
            rows.append(ready)
        if self._ahead:
            ahead = tuple(self._ahead.values())
            self._background.begin(lambda: self._carry_out_ahead(ahead))
        if not is_changed:
            return batch
        return structs.replace(batch, rows=tuple(rows), new_rows=new_rows, page_orders=())

    def names_of(self, numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Names of the pages that these block numbers reach: equal for equal pages, wherever rows have them."""
        num_places = len(self._page_at)
        at = self._page_at[np.minimum(numbers, num_places - 1)]
        return np.where(numbers < num_places, at, numbers - np.int32(num_places - 1))

    def wait(self) -> None:
        """Return when nothing runs in the background."""
        self._background.wait()

    def _introduce(self, new: NewRow) -> NewRow:
        if not 0 <= new.range_id < self._geometry.num_ranges:
            raise InternalError(
                f"row {new.row} comes with virtual range {new.range_id} of {self._geometry.num_ranges}"
            )
        self._rows[new.row] = _RowPages(new.range_id, new.block_tables[0])
        return structs.replace(new, block_tables=((),))

    def _make_ready(self, row: BatchRow) -> BatchRow:
        """The blocks that the row's new tokens need and the rest of the body does not know yet."""
        known = self._rows.get(row.row)
        if known is None:
            raise InternalError(f"row {row.row} is scheduled but was never introduced")
        if row.new_block_ids:
            known.pages.extend(row.new_block_ids[0])
        need = -(-(row.start + row.num_new_tokens) // self._geometry.tokens_per_page)
        end = min(need, len(known.pages))
        if known.num_ready >= end:
            return structs.replace(row, new_block_ids=()) if row.new_block_ids else row
        numbers = tuple(self._block_number(known, offset) for offset in range(known.num_ready, end))
        known.num_ready = end
        return structs.replace(row, new_block_ids=(numbers,))

    def _block_number(self, row: _RowPages, offset: int) -> int:
        geometry, page = self._geometry, row.pages[offset]
        if offset >= geometry.pages_per_range:
            raise InternalError(f"page {offset} of a virtual range of {geometry.pages_per_range} pages")
        place = row.range_id * geometry.pages_per_range + offset
        if self._page_at[place] != page + 1:
            order = self._ahead.pop((row.range_id, offset), None)  # it was meant for later, but is needed now
            if order is None or (order.kind, order.page) != ("map", page):
                self.num_repaired += 1
                order = PageOrder("map", row.range_id, offset, page)
            self._carry_out(order)
            if self._page_at[place] != page + 1:
                return len(self._page_at) + page
        return place

    def _carry_out_ahead(self, orders: Sequence[PageOrder]) -> None:
        for order in orders:
            self._carry_out(order)
        self.num_ahead += sum(order.kind == "map" for order in orders)

    def _carry_out(self, order: PageOrder) -> None:
        place = order.range_id * self._geometry.pages_per_range + order.offset
        if order.kind == "map" and self._page_at[place] == order.page + 1:
            return  # its unmapping was taken back, or never came: a row may be using the place already
        try:
            if order.kind == "map":
                self._page_at[place] = 0
                self.mapper.map(order.range_id, order.offset, order.page)
                self._page_at[place] = order.page + 1
                self.num_mapped += 1
            else:
                self.mapper.unmap(order.range_id, order.offset)
                self._page_at[place] = 0
                self.num_unmapped += 1
        except OSError as exc:
            self.num_refused += 1
            if self.num_refused == 1:
                _LOG.warning("a KV page cannot be mapped, its row will copy it instead: %s", exc)
