"""Preprocessor: defaults, lengths, seeds, bad words, hashes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes.backend import fake_text
from xllm.api.backend import ServedModel
from xllm.api.preprocess import Admission, Preprocessor, truncate_ids
from xllm.config.model_spec import GenerationDefaults
from xllm.errors import ContextTooLong, InvalidRequest
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.sampling import SamplingParams

TEXT = fake_text()
MODEL = ServedModel(
    names=("m",), max_model_len=64, vocab_size=TEXT.tokenizer.vocab_size, block_size=4, revision="rev"
)


def build(defaults: GenerationDefaults | None = None) -> Preprocessor:
    text = TEXT if defaults is None else replace(TEXT, defaults=defaults)
    return Preprocessor(model=MODEL, text=text, max_seconds=100.0)


def test_the_request_wins_over_the_model_and_the_model_over_neutral_values() -> None:
    own = build(
        GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1, max_new_tokens=7)
    )
    params = own.default_sampling({"temperature": 0.2, "top_p": None, "min_p": 0.1})
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.2, 0.95, 20, 0.1)
    assert (params.repetition_penalty, params.max_tokens) == (1.1, 7)
    neutral = build().default_sampling({})
    assert neutral == SamplingParams()


def test_max_tokens_is_what_is_left_and_a_model_default_is_cut_to_it() -> None:
    assert build().build_request("r", [5] * 10, SamplingParams()).sampling.max_tokens == 54
    own = build(GenerationDefaults(max_new_tokens=1000))
    request = own.build_request("r", [5] * 10, own.default_sampling({}))
    assert request.sampling.max_tokens == 54
    with pytest.raises(ContextTooLong, match="at most 54"):
        build().build_request("r", [5] * 10, SamplingParams(max_tokens=55))
    with pytest.raises(ContextTooLong, match="at most 63"):
        build().build_request("r", [5] * 64, SamplingParams(max_tokens=1))


def test_a_seed_is_always_set_and_drawn_anew() -> None:
    first = build().build_request("r", [5], SamplingParams())
    second = build().build_request("r", [5], SamplingParams())
    assert first.seed == first.sampling.seed != second.seed
    assert build().build_request("r", [5], SamplingParams(seed=3)).seed == 3


def test_hashes_are_those_of_the_engine_and_depend_on_the_salt() -> None:
    ids = list(range(20, 33))
    request = build().build_request("r", ids, SamplingParams())
    root = root_hash(block_size=4, weight_revision="rev")
    assert request.block_hashes == block_hashes(ids, block_size=4, root=root)
    assert (len(request.block_hashes), request.block_hash_size) == (3, 4)
    salted = build().build_request("r", ids, SamplingParams(), Admission(cache_salt="s"))
    assert salted.block_hashes == block_hashes(
        ids, block_size=4, root=root_hash(block_size=4, weight_revision="rev", salt="s")
    )
    assert not set(salted.block_hashes) & set(request.block_hashes)


def test_bad_words_are_banned_at_the_beginning_and_after_a_space() -> None:
    request = build().build_request("r", [5], SamplingParams(bad_words=("capital",)))
    texts = {TEXT.tokenizer.decode(ids) for ids in request.sampling.bad_words_token_ids}
    assert texts == {"capital", " capital"}


@pytest.mark.parametrize("ids", [[], [-1], [MODEL.vocab_size]])
def test_impossible_prompts(ids: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        build().build_request("r", ids, SamplingParams())


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised() -> None:
    with pytest.raises(ContextTooLong, match="characters"):
        build().encode_text("x" * (64 * 128 + 1))


def test_deadlines_are_the_lesser_of_the_two() -> None:
    def deadline(wanted: float | None) -> float | None:
        return (
            build().build_request("r", [5], SamplingParams(), Admission(deadline_in_s=wanted)).deadline_in_s
        )

    assert (deadline(None), deadline(5.0), deadline(1e9)) == (100.0, 5.0, 100.0)
    with pytest.raises(InvalidRequest):
        deadline(-1.0)


@pytest.mark.parametrize(
    ("wanted", "side", "kept"),
    [
        (None, None, "abcdef"),
        (2, None, "ef"),
        (2, "left", "ef"),
        (2, "right", "ab"),
        (-1, None, "cdef"),
        (9, None, "abcdef"),
    ],
)
def test_truncation(wanted: int | None, side: str | None, kept: str) -> None:
    ids = [ord(c) for c in "abcdef"]
    assert list(truncate_ids(ids, wanted, side, room=4)) == [ord(c) for c in kept]
