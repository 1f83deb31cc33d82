from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, trainers

from tests.fakes.small_tokenizers import small_tokenizer
from xllm.errors import ConfigError
from xllm.text.tokenizer import Tokenizer
from xllm.workload.datasets import (
    PrefixRepetitionDataset,
    RandomDataset,
    ShareGptDataset,
    build_plain_random,
    write_plain_text,
)
from xllm.workload.lengths import Fixed, Uniform


@pytest.mark.parametrize("name", ["byte_level", "llama2"])
def test_text_encodes_to_exactly_the_ids_and_the_wanted_length(name: str) -> None:
    codec = small_tokenizer(name)
    samples = RandomDataset(Uniform(5, 90), Fixed(16)).build(40, seed=2, codec=codec)
    for sample in samples:
        assert sample.text is not None
        assert codec.encode(sample.text, add_special_tokens=False) == list(sample.prompt_ids)
        assert sample.num_prompt_tokens == len(sample.prompt_ids)
        assert not codec.special_ids & set(sample.prompt_ids)
    assert all(5 <= sample.num_prompt_tokens <= 90 for sample in samples)
    assert len({sample.prompt_ids for sample in samples}) == 40


def test_lengths_are_corrected_where_random_tokens_merge() -> None:
    """Without spaces "a" + "b" becomes "ab": the first text is shorter in tokens than was asked."""
    library = tokenizers.Tokenizer(models.BPE())
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=12, initial_alphabet=["a", "b", "c"], show_progress=False)
    library.train_from_iterator(["abcabcaabbccacb" * 20], trainer)
    codec = Tokenizer(library)
    for sample in RandomDataset(Fixed(40), Fixed(1)).build(20, seed=0, codec=codec):
        assert sample.text is not None and codec.encode(sample.text) == list(sample.prompt_ids)
        assert sample.num_prompt_tokens == 40


def test_fixed_lengths_are_exact_and_the_seed_decides() -> None:
    codec = small_tokenizer("byte_level")
    dataset = RandomDataset(Fixed(64), Fixed(8))
    samples = dataset.build(10, seed=5, codec=codec)
    assert [(s.num_prompt_tokens, s.max_output_tokens) for s in samples] == [(64, 8)] * 10
    assert dataset.build(10, seed=5, codec=codec) == samples
    assert dataset.build(10, seed=6, codec=codec) != samples


def test_without_a_codec_ids_come_from_the_vocabulary() -> None:
    samples = RandomDataset(Fixed(50), Fixed(4), num_prefix_tokens=20).build(8, seed=0, vocab_size=10)
    assert all(
        s.text is None and len(s.prompt_ids) == 70 and set(s.prompt_ids) <= set(range(10)) for s in samples
    )
    assert len({s.prompt_ids[:20] for s in samples}) == 1
    assert len({s.prompt_ids[20:] for s in samples}) == 8


def test_prefixes_repeat_evenly_and_suffixes_differ() -> None:
    codec = small_tokenizer("byte_level")
    samples = PrefixRepetitionDataset(32, 16, 3, Fixed(5)).build(10, seed=1, codec=codec)
    groups = Counter(s.prefix_group for s in samples)
    assert sorted(groups.values()) == [3, 3, 4]
    assert all(s.num_prompt_tokens == 48 and s.max_output_tokens == 5 for s in samples)
    prefixes = {s.prefix_group: s.prompt_ids[:31] for s in samples}
    assert len(set(prefixes.values())) == 3
    assert all(s.prompt_ids[:31] == prefixes[s.prefix_group] for s in samples)
    assert [s.prefix_group for s in samples] != sorted(s.prefix_group or 0 for s in samples)
    with pytest.raises(ConfigError, match="--num-prompts"):
        PrefixRepetitionDataset(num_prefixes=3).build(2, seed=0)


def test_sharegpt_filters_by_length_and_repeats_when_short(tmp_path: Path) -> None:
    codec = small_tokenizer("byte_level")
    path = tmp_path / "share.json"
    good = {
        "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "It is Paris."}]
    }
    rows = [
        good,
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {
            "conversations": [
                {"from": "human", "value": "x"},
                {"from": "gpt", "value": "too short a question"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "long " * 3000},
                {"from": "gpt", "value": "an answer here"},
            ]
        },
    ]
    path.write_text(json.dumps(rows))
    samples = ShareGptDataset(path).build(3, seed=0, codec=codec)
    assert [s.text for s in samples] == ["What is it?"] * 3
    assert samples[0].max_output_tokens == len(codec.encode("It is Paris."))
    assert ShareGptDataset(path, num_output_tokens=7).build(1, seed=0, codec=codec)[0].max_output_tokens == 7
    path.write_text(json.dumps(rows[1:]))
    with pytest.raises(ConfigError, match="no conversation fits"):
        ShareGptDataset(path).build(1, seed=0, codec=codec)
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"share\.json"):
        ShareGptDataset(path).build(1, seed=0, codec=codec)


def test_plain_text_needs_no_tokenizer() -> None:
    assert len(write_plain_text(12, random.Random(0)).split()) == 12
    samples = build_plain_random(RandomDataset(Fixed(6), Fixed(3), num_prefix_tokens=2), 4, seed=0)
    assert all(s.text is not None and len(s.text.split()) == s.num_prompt_tokens == 8 for s in samples)
    assert len({" ".join((s.text or "").split()[:2]) for s in samples}) == 1
