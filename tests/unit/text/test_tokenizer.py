from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.small_tokenizers import BUILDERS, CORPUS, small_tokenizer, write_tokenizer_dir
from xllm.errors import InvalidRequest, ModelError
from xllm.text.decoding import DecodeKind
from xllm.text.tokenizer import Tokenizer

KINDS = {
    "byte_level": DecodeKind.BYTES,
    "llama2": DecodeKind.PIECES,
    "gemma": DecodeKind.PIECES,
    "unigram": DecodeKind.WINDOW,
    "wordpiece": DecodeKind.WINDOW,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_gets_its_kind(name: str) -> None:
    assert small_tokenizer(name).plan.kind is KINDS[name]


@pytest.mark.parametrize("name", ["byte_level", "llama2"])
@pytest.mark.parametrize("text", CORPUS)
def test_text_survives_encode_and_decode(name: str, text: str) -> None:
    tokenizer = small_tokenizer(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_post_processor_adds_bos_only_when_asked() -> None:
    tokenizer = small_tokenizer("llama2")
    assert tokenizer.bos_token_id == 1 and tokenizer.eos_token_id == 2
    with_bos, without = tokenizer.encode("Hello"), tokenizer.encode("Hello", add_special_tokens=False)
    assert with_bos == [1, *without]
    assert tokenizer.encode_batch(["Hello", "Paris"]) == [with_bos, tokenizer.encode("Paris")]


def test_special_tokens_are_skipped_or_shown() -> None:
    tokenizer = small_tokenizer("byte_level")
    ids = tokenizer.encode("<|im_start|>hi<tool_call><|im_end|>")
    assert tokenizer.decode(ids) == "hi<tool_call>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<tool_call><|im_end|>"
    assert tokenizer.eos_token_id in tokenizer.special_ids
    assert tokenizer.vocab_size == max(tokenizer.encode("<tool_call>")) + 1


def test_ids_beyond_the_vocabulary_give_no_text_and_impossible_ids_are_refused() -> None:
    tokenizer = small_tokenizer("byte_level")
    assert tokenizer.decode([*tokenizer.encode("hi"), 10**6]) == "hi"
    assert tokenizer.id_to_token(10**6) is None and tokenizer.token_bytes(10**6) is None
    for wrong in (-1, 2**32):
        with pytest.raises(InvalidRequest, match=str(wrong)):
            tokenizer.decode([wrong])


def test_lone_surrogates_are_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest):
        small_tokenizer("byte_level").encode("bad \ud800")


@pytest.mark.parametrize("name", ["byte_level", "llama2", "gemma"])
@pytest.mark.parametrize("text", CORPUS)
def test_token_bytes_concatenate_to_the_text(name: str, text: str) -> None:
    tokenizer = small_tokenizer(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(i) or b"" for i in ids).decode()
    assert joined.removeprefix(" ") == text.removeprefix(" ")


def test_token_piece_keeps_the_leading_space() -> None:
    for name, start in (("llama2", "▁"), ("unigram", "▁"), ("wordpiece", "c"), ("byte_level", "Ġ")):
        tokenizer = small_tokenizer(name)
        token = next(
            i for i in range(tokenizer.vocab_size) if (tokenizer.id_to_token(i) or "").startswith(start)
        )
        assert tokenizer.token_piece(token).startswith(" "), name
    assert small_tokenizer("llama2").token_bytes(3 + 0xF0) == b"\xf0"
    assert small_tokenizer("llama2").token_piece(3 + 0xF0) == "\ufffd"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_decode_equals_the_library_unless_a_byte_run_is_broken(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["byte_level", "llama2", "gemma", "unigram"]))
    tokenizer = small_tokenizer(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=30))
    skip = data.draw(st.booleans())
    library = tokenizer._library.decode(ids, skip_special_tokens=skip)
    if "\ufffd" not in library or name not in ("llama2", "gemma"):
        assert tokenizer.decode(ids, skip_special_tokens=skip) == library
    else:
        assert "\ufffd" in tokenizer.decode(ids, skip_special_tokens=skip)


def test_one_broken_byte_spoils_only_itself() -> None:
    tokenizer = small_tokenizer("llama2")
    run = [3 + byte for byte in "é".encode() + b"\xff" + b"A"]
    assert tokenizer.decode(run) == "é\ufffdA"


# -- files


def test_from_dir_reads_configuration_and_adds_tokens_listed_there(tmp_path: Path) -> None:
    folder = write_tokenizer_dir(tmp_path / "m")
    first = Tokenizer.from_dir(folder)
    assert first.special_tokens == {"eos_token": "<|im_end|>"}
    extra = {str(first.vocab_size): {"content": "<|new|>", "special": True}}
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<|endoftext|>"}}))
    write_tokenizer_dir(folder, added_tokens_decoder=extra)
    second = Tokenizer.from_dir(folder)
    assert second.vocab_size == first.vocab_size + 1
    assert second.decode(second.encode("a<|new|>b")) == "ab"
    assert second.pad_token_id == second.token_to_id("<|endoftext|>")


def test_contradicting_files_are_refused(tmp_path: Path) -> None:
    folder = write_tokenizer_dir(tmp_path, added_tokens_decoder={"7": {"content": "<|im_end|>"}})
    with pytest.raises(ModelError, match=r"<\|im_end\|>.*has id 7 in the configuration"):
        Tokenizer.from_dir(folder)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ModelError, match="SentencePiece"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nope"}}')
    with pytest.raises(ModelError, match=r"cannot load .*tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    write_tokenizer_dir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        Tokenizer.from_dir(tmp_path)


def test_truncation_left_in_the_file_is_switched_off(tmp_path: Path) -> None:
    library = BUILDERS["byte_level"]()
    library.enable_truncation(max_length=2)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    ids = Tokenizer.from_dir(tmp_path).encode("Hello world, hello there!")
    assert 2 < len(ids) < 50
