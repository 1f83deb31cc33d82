from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.small_tokenizers import BUILDERS, CORPUS, small_tokenizer
from xllm.text.detokenizer import IncrementalDetokenizer
from xllm.text.tokenizer import Tokenizer


def stream(
    tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int], skip: bool, prompt: Sequence[int] = ()
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip, prompt)
    edges = [0, *sorted(cuts), len(ids)]
    parts = [detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(edges)]
    return [*parts, detokenizer.flush()]


@st.composite
def token_streams(draw: st.DrawFn) -> tuple[Tokenizer, list[int], list[int], bool]:
    tokenizer = small_tokenizer(draw(st.sampled_from(sorted(BUILDERS))))
    random_ids = st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=12)
    low_ids = st.lists(
        st.integers(0, min(260, tokenizer.vocab_size)), max_size=12
    )  # mostly bytes and specials
    alphabet = st.sampled_from("ab ▁\n\ufffdé你😀\u200d👩🇫")
    encoded = st.text(alphabet, max_size=8).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    parts = draw(st.lists(st.one_of(random_ids, low_ids, encoded), max_size=5))
    ids = [i for part in parts for i in part]
    cuts = draw(st.lists(st.integers(0, len(ids)), max_size=len(ids)))
    return tokenizer, ids, cuts, draw(st.booleans())


@settings(max_examples=600, deadline=None)
@given(token_streams())
def test_any_chunking_gives_the_whole_decode(case: tuple[Tokenizer, list[int], list[int], bool]) -> None:
    tokenizer, ids, cuts, skip = case
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, cuts, skip)) == expected
    assert "".join(stream(tokenizer, ids, range(len(ids)), skip)) == expected


@settings(max_examples=300, deadline=None)
@given(token_streams(), st.integers(0, 60))
def test_with_a_prompt_the_text_is_what_the_prompt_lacks(
    case: tuple[Tokenizer, list[int], list[int], bool], at: int
) -> None:
    tokenizer, ids, _, skip = case
    prompt, output = ids[:at], ids[at:]
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    before = IncrementalDetokenizer(tokenizer, skip)
    prompt_text = before.push(prompt)
    assert "".join(stream(tokenizer, output, range(len(output)), skip, prompt)) == whole[len(prompt_text) :]


@pytest.mark.parametrize("name", ["byte_level", "llama2"])
@pytest.mark.parametrize("text", CORPUS)
def test_valid_text_never_shows_a_replacement_character(name: str, text: str) -> None:
    tokenizer = small_tokenizer(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = stream(tokenizer, ids, range(len(ids)), True)
    assert all("\ufffd" not in part for part in parts)
    assert "".join(parts) == text


@pytest.mark.parametrize("name", ["byte_level", "llama2"])
def test_a_character_appears_with_its_last_byte_and_flush_ends_half_of_one(name: str) -> None:
    tokenizer = small_tokenizer(name)
    byte_ids = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    ids = [byte_ids[bytes([byte])] for byte in "😀".encode()]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push([i]) for i in ids] == ["", "", "", "😀"]
    assert [detokenizer.push([i]) for i in ids[:2]] == ["", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("name", ["llama2", "unigram"])
def test_the_leading_space_is_kept_after_a_prompt_only(name: str) -> None:
    tokenizer = small_tokenizer(name)
    prompt = tokenizer.encode("The capital of France is")
    answer = tokenizer.encode("Paris", add_special_tokens=False)
    assert "".join(stream(tokenizer, answer, [], True)) == "Paris"
    assert "".join(stream(tokenizer, answer, [], True, prompt)) == " Paris"
    special = [i for i in tokenizer.special_ids if i][:1]
    assert "".join(stream(tokenizer, answer, [], True, special)) == "Paris"


def test_work_per_token_does_not_grow_with_an_endless_broken_character() -> None:
    """2,000 bytes that never form a character must come out while they stream, not pile up until the flush."""
    tokenizer = small_tokenizer("byte_level")
    byte_ids = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    detokenizer = IncrementalDetokenizer(tokenizer)
    lengths = [len(detokenizer.push([byte_ids[b"\xff"]])) for _ in range(2000)]
    assert lengths == [1] * 2000
