from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xllm.errors import InvalidRequest
from xllm.text.stop_strings import StopStringMatcher


def run(stops: list[str], include: bool, chunks: list[str]) -> tuple[str, str | None]:
    matcher = StopStringMatcher(stops, include)
    text, matched = "", None
    for chunk in chunks:
        emitted, matched = matcher.push(chunk)
        text += emitted
        if matched is not None:
            break
    return (text if matched is not None else text + matcher.flush()), matched


def cut_whole(stops: list[str], include: bool, text: str) -> tuple[str, str | None]:
    """The definition: over every prefix of the text, the first that ends in a stop string; longest of those."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.booleans(),
    st.lists(st.text("ab\nc", max_size=4), max_size=10),
)
def test_any_chunking_cuts_like_the_whole(stops: list[str], include: bool, chunks: list[str]) -> None:
    whole = "".join(chunks)
    expected = cut_whole(stops, include, whole)
    assert run(stops, include, chunks) == expected
    assert run(stops, include, list(whole)) == expected
    assert run(stops, include, [whole]) == expected
    if len(stops) == 1 and expected[1] is not None and not include:
        assert len(expected[0]) == whole.find(stops[0])


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopStringMatcher(["\n\nUser:"])
    assert matcher.push("Hello\n") == ("Hello", None)
    assert matcher.push("world") == ("\nworld", None)
    assert matcher.push("!\n\nUs") == ("!", None)
    assert matcher.push("er: x") == ("", "\n\nUser:")
    assert matcher.push("more") == ("", "\n\nUser:")


def test_nothing_is_matched_before_stopping_is_allowed() -> None:
    matcher = StopStringMatcher(["END"])
    assert matcher.push("x END y E", may_stop=False) == ("x END y E", None)
    assert matcher.push("ND") == ("ND", None)
    assert matcher.push("END") == ("", "END")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        StopStringMatcher([""])
