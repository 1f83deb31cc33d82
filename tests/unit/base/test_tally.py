"""A tally says once what has changed."""

from __future__ import annotations

from xllm.base.tally import Tally


def test_a_change_is_told_once() -> None:
    tally = Tally()
    tally["a"] += 2
    tally["b"] += 1
    assert tally.take_changed() == {"a", "b"} and tally.take_changed() == set()
    tally["a"] -= 2
    del tally["b"]
    assert tally.take_changed() == {"a", "b"} and tally["a"] == tally["b"] == 0
    assert tally.take_changed() == set()  # to ask is no change
