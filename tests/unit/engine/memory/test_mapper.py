"""Real virtual memory: what is written in one place of a page is read in all of them."""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from pathlib import Path

import pytest

from xllm.engine.memory.mapper import MemfdMapper
from xllm.errors import CapacityError
from xllm.types.pages import PageGeometry

PAGE = 65536
GEOMETRY = PageGeometry(page_bytes=PAGE, tokens_per_page=4, pages_per_range=4, num_ranges=3, max_mappings=100)


def place(range_id: int, offset: int) -> int:
    return (range_id * 4 + offset) * PAGE


def mappings(mapper: MemfdMapper) -> int:
    """Inside the mapper's addresses: elsewhere the interpreter may map memory of its own at any time."""
    begins = [int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines()]
    return sum(mapper.address <= begin < mapper.address + mapper.num_bytes for begin in begins)


def test_a_page_is_the_same_in_every_place() -> None:
    mapper = MemfdMapper(GEOMETRY, 5)
    memory = mapper.buffer
    linear = place(3, 0)
    mapper.map(0, 0, 2)
    mapper.map(2, 3, 2)
    memory[place(0, 0) + 7 : place(0, 0) + 10] = b"abc"
    assert bytes(memory[place(2, 3) + 7 : place(2, 3) + 10]) == b"abc"
    assert bytes(memory[linear + 2 * PAGE + 7 : linear + 2 * PAGE + 10]) == b"abc"
    mapper.map(0, 0, 4)  # in place of the other, which keeps its bytes
    assert bytes(memory[place(0, 0) + 7 : place(0, 0) + 10]) == bytes(3)
    assert bytes(memory[place(2, 3) + 7 : place(2, 3) + 10]) == b"abc"


def test_neighbours_are_one_stretch() -> None:
    mapper = MemfdMapper(GEOMETRY, 5)
    for offset, page in enumerate((4, 1, 3)):
        mapper.map(1, offset, page)
    memory = mapper.buffer
    memory[place(1, 1) - 2 : place(1, 1) + 2] = b"wxyz"
    linear = place(3, 0)
    assert bytes(memory[linear + 5 * PAGE - 2 : linear + 5 * PAGE]) == b"wx"
    assert bytes(memory[linear + PAGE : linear + PAGE + 2]) == b"yz"


def test_mapping_and_unmapping_cost_no_more_mappings_than_assumed() -> None:
    mapper = MemfdMapper(GEOMETRY, 12)
    before = mappings(mapper)
    for range_id in range(3):
        for offset in (0, 2):  # no two are neighbours: the worst case
            mapper.map(range_id, offset, range_id * 4 + 2 * offset // 2)
    assert 0 < mappings(mapper) - before <= 2 * 6
    for range_id in range(3):
        for offset in (0, 2):
            mapper.unmap(range_id, offset)
    assert mappings(mapper) == before


def test_a_lost_place_is_never_mapped() -> None:
    mapper = MemfdMapper(GEOMETRY, 5)
    mapper._lost.add(mapper.address + place(1, 1))
    with pytest.raises(OSError, match="not reserved"):
        mapper.map(1, 1, 0)
    mapper.map(1, 0, 0)


def test_a_page_that_does_not_exist_is_refused_and_the_place_stays_reserved() -> None:
    mapper = MemfdMapper(GEOMETRY, 5)
    good, mapper._file = mapper._file, -1
    with pytest.raises(OSError):
        mapper.map(1, 1, 0)
    mapper._file = good
    assert not mapper._lost
    mapper.map(1, 1, 0)
    assert mapper.buffer[place(1, 1)] == b"\0"


def test_memory_is_given_back_with_its_last_user() -> None:
    mapper = MemfdMapper(GEOMETRY, 5)
    address, file = f"{mapper.address:x}-", mapper._file
    gone, memory = weakref.ref(mapper), mapper.buffer
    del mapper
    gc.collect()
    assert gone() is not None and memory[place(3, 0)] == b"\0"
    del memory
    gc.collect()
    assert gone() is None
    assert address not in Path("/proc/self/maps").read_text()
    with pytest.raises(OSError):
        os.fstat(file)


def test_too_many_addresses_are_a_capacity_error() -> None:
    huge = PageGeometry(
        page_bytes=2**40, tokens_per_page=4, pages_per_range=2**10, num_ranges=64, max_mappings=100
    )
    with pytest.raises(CapacityError, match="addresses") as error:
        MemfdMapper(huge, 1)
    assert "--kv-layout paged" in str(error.value)


def test_arrays_keep_the_mapper_alive() -> None:
    mapper = MemfdMapper(GEOMETRY, 5)
    assert isinstance(mapper.buffer, ctypes.Array)
    assert mapper.buffer.owner is mapper  # type: ignore[attr-defined]
