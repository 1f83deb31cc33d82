"""ChoiceText: the same text however the engine cuts its outputs; exact stop strings; hidden stop tokens."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.fakes.backend import fake_text
from xllm.api.choice_text import ChoiceText
from xllm.types.output import PositionLogprobs, RequestOutput, TokenLogprob
from xllm.types.request import Request
from xllm.types.sampling import SamplingParams

TEXT = "Grüße aus Köln, señor 😀👩‍👩‍👧‍👦. 你好世界 ends here; the end."
TOKENIZER = fake_text().tokenizer


def run(
    ids: list[int], cuts: list[int], params: SamplingParams, finish: str = "length"
) -> tuple[str, list[int], str | None, object, list[int]]:
    """(text, tokens used, finish, stop reason, logprob ids) for outputs cut at ``cuts``."""
    request = Request(id="r", prompt_token_ids=(5,), seed=0, sampling=params)
    choice = ChoiceText(TOKENIZER, request, 0)
    text, used, logged = "", [], []
    reason: str | None = None
    stop: object = None
    edges = [0, *cuts, len(ids)]
    for start, end in pairwise(edges):
        piece = tuple(ids[start:end])
        positions = tuple(PositionLogprobs(TokenLogprob(i, -1.0, 1)) for i in piece)
        is_last = end == len(ids) and start != end
        output = RequestOutput(
            "r",
            0,
            0,
            start,
            piece,
            logprobs=positions,
            finish_reason=finish if is_last else None,  # type: ignore[arg-type]
        )
        delta = choice.push(output)
        assert reason is None or (delta.text, list(delta.token_ids), delta.finish_reason) == ("", [], None)
        text += delta.text
        used += delta.token_ids
        logged += [p.token.token_id for p in delta.logprobs]
        if delta.finish_reason is not None:
            reason, stop = delta.finish_reason, delta.stop_reason
    assert choice.num_tokens == len(used)
    return text, used, reason, stop, logged


def random_cuts(rng: random.Random, size: int) -> list[int]:
    return sorted(rng.sample(range(1, size), rng.randrange(0, size - 1)))


@pytest.mark.parametrize("seed", range(30))
def test_text_and_stop_do_not_depend_on_the_cuts(seed: int) -> None:
    rng = random.Random(seed)
    ids = TOKENIZER.encode(TEXT, False)
    at = rng.randrange(1, len(TEXT) - 4)
    stops = (TEXT[at : at + rng.randrange(1, 4)], "never there")
    params = SamplingParams(
        stop=stops if seed % 3 else (),
        include_stop_str_in_output=bool(seed % 2),
        min_tokens=rng.choice([0, 0, 10]),
    )
    whole = run(ids, list(range(1, len(ids))), params)
    for _ in range(10):
        assert run(ids, random_cuts(rng, len(ids)), params) == whole
    text, used, reason, stop, logged = whole
    assert used == ids[: len(used)] and logged == used
    if not params.stop:
        assert (text, reason, len(used)) == (TEXT, "length", len(ids))
    elif params.min_tokens == 0:
        cut = TEXT.index(stops[0])
        assert text == TEXT[: cut + len(stops[0]) * params.include_stop_str_in_output]
        assert (reason, stop) == ("stop", stops[0])


def test_min_tokens_let_an_early_stop_string_pass() -> None:
    ids = TOKENIZER.encode(TEXT, False)
    params = SamplingParams(stop=("aus",), min_tokens=len(ids) - 1)
    assert run(ids, [], params)[:1] == (TEXT,)


def test_the_stop_token_is_hidden_unless_asked_for() -> None:
    ids = [*TOKENIZER.encode("Hello", False), *TOKENIZER.encode(" end", False)]
    hidden = run(ids, [], SamplingParams(), finish="stop")
    shown = run(ids, [], SamplingParams(include_stop_str_in_output=True), finish="stop")
    assert hidden[1] == shown[1] == ids
    assert shown[0] == "Hello end" and shown[0].startswith(hidden[0]) and hidden[0] != shown[0]


def test_a_broken_character_at_the_end_shows_once() -> None:
    ids = TOKENIZER.encode("a😀", False)
    text, used, *_ = run(ids[:-1], [], SamplingParams())
    assert text == "a\ufffd" and len(used) == len(ids) - 1


def test_held_back_text_comes_out_at_the_end() -> None:
    ids = TOKENIZER.encode("the en", False)
    text, *_ = run(ids, list(range(1, len(ids))), SamplingParams(stop=("end.",)))
    assert text == "the en"


def test_without_detokenisation_only_tokens_come() -> None:
    ids = TOKENIZER.encode("Hello", False)
    assert run(ids, [], SamplingParams(detokenize=False, stop=("e",)))[:2] == ("", ids)
