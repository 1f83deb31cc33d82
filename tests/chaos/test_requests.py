"""What the clients of the chaos run see and what they do not let pass."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import replace

import pytest

from tests.chaos.requests import (
    KINDS,
    Answer,
    Case,
    Choice,
    Position,
    StreamBooks,
    add_stops,
    build_bodies,
    difference,
    parse_answer,
    prefix_difference,
)  # fmt: skip

LOGPROBS = {
    "tokens": ["a", "b"],
    "token_logprobs": [-0.5, -1.25],
    "text_offset": [0, 1],
    "top_logprobs": [{"a": -0.5, "x": -0.75}, {"y": -1.0, "b": -1.25}],
}
WHOLE = {
    "choices": [
        {"index": 0, "text": "ab", "token_ids": [7, 8], "finish_reason": "length", "logprobs": LOGPROBS}
    ],
    "usage": {"completion_tokens": 2, "prompt_tokens": 5},
}
POSITIONS = (
    Position("a", -0.5, 0, (("a", -0.5), ("x", -0.75))),
    Position("b", -1.25, 1, (("b", -1.25), ("y", -1.0))),
)


def case(tolerance: float = 0.0) -> Case:
    return Case("mixed", {}, parse_answer(WHOLE), tolerance)


def test_an_answer_is_read_with_everything_that_is_compared() -> None:
    choice = Choice("ab", (7, 8), "length", None, POSITIONS)
    assert parse_answer(WHOLE) == Answer([choice], num_output_tokens=2, num_prompt_tokens=5)


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    books = StreamBooks(1)
    for n in range(2):
        part = {name: values[n : n + 1] for name, values in LOGPROBS.items()}
        end = "length" if n else None
        books.take(
            {"choices": [{"index": 0, "text": "ab"[n], "token_ids": [7 + n], "logprobs": part,
                          "finish_reason": end}]}
        )  # fmt: skip
    books.take({"choices": [], "usage": WHOLE["usage"]})
    assert difference(case(), books.answer) is None


def changed(**fields: object) -> Answer:
    answer = deepcopy(parse_answer(WHOLE))
    answer.choices[0] = replace(answer.choices[0], **fields)  # type: ignore[arg-type]
    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (changed(token_ids=(7, 9)), "token 1 of 2 is changed"),
        (changed(token_ids=(7, 7)), "token 1 of 2 is duplicated"),
        (changed(text="ax"), "the text differs"),
        (changed(finish_reason="stop"), "finish_reason"),
        (changed(logprobs=POSITIONS[:1]), "1 log-probabilities are lost"),
        (changed(logprobs=(*POSITIONS, POSITIONS[0])), "1 log-probabilities too many"),
        (changed(logprobs=(POSITIONS[0], replace(POSITIONS[1], logprob=-1.2501))), "of token 1 are"),
        (changed(logprobs=(POSITIONS[0], replace(POSITIONS[1], offset=2))), "of token 1 are"),
        (changed(logprobs=(replace(POSITIONS[0], top=(("a", -0.5), ("z", -0.75))), POSITIONS[1])), "token 0"),
        (replace(parse_answer(WHOLE), num_prompt_tokens=6), "num_prompt_tokens is 6, not 5"),
        (replace(parse_answer(WHOLE), num_output_tokens=3), "num_output_tokens is 3, not 2"),
    ],
)
def test_whatever_is_not_the_undisturbed_answer_is_told(answer: Answer, said: str) -> None:
    assert said in str(difference(case(), answer))


def test_a_broken_stream_must_be_right_as_far_as_it_came() -> None:
    assert prefix_difference(case(), 0, Choice("a", (7,), None, None, POSITIONS[:1])) is None
    wrong = replace(POSITIONS[0], logprob=-0.625)
    assert "of token 0" in str(prefix_difference(case(), 0, Choice("a", (7,), None, None, (wrong,))))


def test_a_real_model_has_a_tolerance_and_no_more() -> None:
    for by, is_right in ((0.00005, True), (0.001, False)):
        moved = replace(POSITIONS[1], logprob=-1.25 - by, top=(("b", -1.25 - by), ("y", -1.0 + by)))
        found = difference(case(1e-4), changed(logprobs=(POSITIONS[0], moved)))
        assert (found is None) == is_right, found


def test_the_mixed_kind_has_everything_at_once() -> None:
    bodies = build_bodies(random.Random(1), 3 * len(KINDS), max_tokens=80)
    mixed = [body for kind, body in bodies if kind == "mixed"]
    assert len(mixed) == 3
    plain = Answer([Choice("one two three four five six", tuple(range(12)))] * 2)
    for body in mixed:
        asked = add_stops(random.Random(2), "mixed", body, plain)
        assert asked["n"] == 2 and asked["logprobs"] == 2 and asked["frequency_penalty"] and asked["stop"]
        assert "seed" in asked and asked["temperature"] == 1.0
