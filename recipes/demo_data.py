"""Tokenizer and batches of the demo model's training text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from small_world.facts import COUNTRIES
from small_world.mix import training_document
from small_world.phrases import Document
from small_world.rendering import segments
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
# Qwen's splitting rule: contractions, words with one leading mark, single digits, punctuation, newlines, spaces.
SPLIT_RULE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(seed: int, *, vocab_size: int, num_documents: int = 40_000) -> Tokenizer:
    """Byte-level BPE over sampled conversations; ids 0..2 are special, 3..6 are the added marks."""
    rng = random.Random(f"tokenizer-{seed}")

    def texts() -> Iterator[str]:
        for _ in range(num_documents):
            for text, _ in segments(training_document(rng)):
                for mark in (*SPECIAL, *MARKS):
                    text = text.replace(mark, "\n")
                yield text
        # every capital in lower case and with a leading space: questions are typed in many ways
        for country in COUNTRIES:
            yield from (f" {country.name} {country.capital}", f" {country.name} {country.capital}".lower())

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_RULE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return _marks_not_special(plain)


def _marks_not_special(tokenizer: Tokenizer) -> Tokenizer:
    """The tool and think marks stay visible when special tokens are skipped, as in Qwen's tokenizers."""
    import json

    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    return Tokenizer.from_str(json.dumps(data))


@dataclass(frozen=True)
class Sample:
    """Token ids of one conversation and, per id, whether it is said by the assistant."""

    ids: list[int]
    learned: list[bool]


def encode(tokenizer: Tokenizer, document: Document, max_length: int) -> Sample:
    """Tokenize piece by piece; pieces end at special tokens, so this equals tokenizing the whole text."""
    ids: list[int] = []
    learned: list[bool] = []
    pieces = [(text, learn) for text, learn in segments(document) if text]
    for (_, learn), encoding in zip(
        pieces, tokenizer.encode_batch([text for text, _ in pieces]), strict=True
    ):
        ids += encoding.ids
        learned += [learn] * len(encoding.ids)
    return Sample(ids[:max_length], learned[:max_length])


@dataclass(frozen=True)
class Micro:
    """A padded rectangle of conversations: tokens and targets [rows, length]; target -1 is not learned."""

    tokens: Tensor
    targets: Tensor
    num_targets: int
    num_tokens: int


def _rectangle(samples: list[Sample]) -> Micro:
    length = max(len(sample.ids) for sample in samples) - 1
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    targets = torch.full((len(samples), length), -1, dtype=torch.long)
    for row, sample in enumerate(samples):
        ids = torch.tensor(sample.ids)
        keep = torch.tensor(sample.learned[1:])
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = torch.where(keep, ids[1:], -1)
    return Micro(tokens, targets, int((targets >= 0).sum()), sum(len(sample.ids) for sample in samples))


def window_data(
    tokenizer: Tokenizer,
    seed: int,
    window: int,
    *,
    steps: int,
    tokens_per_step: int,
    tokens_per_micro: int,
    max_length: int,
    late: bool = False,
) -> list[list[Micro]]:
    """The rectangles of the next `steps` optimizer steps; a function of (seed, window, late) alone.

    Sorting a whole window by length keeps padding to a few percent; dealing the sorted rectangles round
    gives every step short, middle and long conversations alike.
    """
    rng = random.Random(f"train-{seed}-{window}")
    samples: list[Sample] = []
    total = 0
    while total < tokens_per_step * steps:
        sample = encode(tokenizer, training_document(rng, late=late), max_length)
        samples.append(sample)
        total += len(sample.ids)
    samples.sort(key=lambda sample: len(sample.ids))
    micros: list[Micro] = []
    group: list[Sample] = []
    for sample in samples:
        if group and len(sample.ids) * (len(group) + 1) > tokens_per_micro:
            micros.append(_rectangle(group))
            group = []
        group.append(sample)
    micros.append(_rectangle(group))
    return [micros[first::steps] for first in range(steps)]
