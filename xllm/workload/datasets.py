"""Datasets: lists of PromptSample, the same for the same seed.

Random token ids seldom survive decode + encode (half characters, merges across borders), so where a codec is
given prompts are built of tokens that stand alone as words, decoded, encoded again and corrected to the
wanted length: what is sent as text is what the server counts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm.errors import ConfigError, boundary
from xllm.workload.lengths import Fixed, LengthDistribution
from xllm.workload.prompt import Codec, PromptSample

_MAX_WORDS = 4096
_MIN_WORDS = 16
_MAX_CORRECTIONS = 12


class PromptWriter:
    """Writes random prompts of a wanted length: ids from a vocabulary, and text when there is a codec."""

    def __init__(self, codec: Codec | None, vocab_size: int, rng: random.Random) -> None:
        """Without a codec ids are drawn from ``0..vocab_size-1`` and prompts have no text."""
        self._codec = codec
        self._rng = rng
        self._words: Sequence[int] = range(vocab_size) if codec is None else _standalone_words(codec, rng)

    def write(self, num_tokens: int, prefix: Sequence[int] = ()) -> tuple[tuple[int, ...], str | None]:
        """Ids (``len(prefix) + num_tokens`` of them, or as near as the tokenizer allows) and their text."""
        wanted = len(prefix) + num_tokens
        ids = [*prefix, *self._rng.choices(self._words, k=num_tokens)]
        if self._codec is None:
            return tuple(ids), None
        text = self._codec.decode(ids)
        for _ in range(_MAX_CORRECTIONS):
            encoded = self._codec.encode(text, add_special_tokens=False)
            if len(encoded) == wanted:
                break
            missing = wanted - len(encoded)
            longer = [*encoded, *self._rng.choices(self._words, k=max(0, missing))]
            text = self._codec.decode(longer[:wanted])
        return tuple(self._codec.encode(text, add_special_tokens=False)), text


def _standalone_words(codec: Codec, rng: random.Random) -> list[int]:
    """Tokens that come back as themselves after decode + encode in the middle of a text."""
    special = frozenset(codec.special_ids)
    ids = [i for i in range(codec.vocab_size) if i not in special]
    rng.shuffle(ids)
    words: list[int] = []
    others: list[int] = []
    for token_id in ids:
        text = codec.decode([token_id, token_id])
        if not text or "\ufffd" in text:
            continue
        others.append(token_id)
        is_word = " " in text and text.replace(" ", "").isalnum()
        if is_word and codec.encode(text, add_special_tokens=False)[-1:] == [token_id]:
            words.append(token_id)
        if len(words) == _MAX_WORDS:
            break
    if not others:
        raise ConfigError("the tokenizer has no token that is text on its own")
    return words if len(words) >= _MIN_WORDS else others


@dataclass(frozen=True, slots=True)
class RandomDataset:
    """Independent random prompts, behind one shared prefix of ``num_prefix_tokens``."""

    input_tokens: LengthDistribution
    output_tokens: LengthDistribution
    num_prefix_tokens: int = 0

    def build(
        self, num: int, seed: int, codec: Codec | None = None, vocab_size: int = 32_000
    ) -> list[PromptSample]:
        """``num`` samples."""
        rng = random.Random(seed)
        writer = PromptWriter(codec, vocab_size, rng)
        prefix = writer.write(self.num_prefix_tokens)[0] if self.num_prefix_tokens else ()
        group = 0 if self.num_prefix_tokens else None
        samples = []
        for _ in range(num):
            ids, text = writer.write(self.input_tokens.draw(rng), prefix)
            samples.append(PromptSample(ids, text, len(ids), self.output_tokens.draw(rng), group))
        return samples


@dataclass(frozen=True, slots=True)
class PrefixRepetitionDataset:
    """A few long prefixes, each shared by many prompts with their own suffix; shuffled."""

    num_prefix_tokens: int = 256
    num_suffix_tokens: int = 256
    num_prefixes: int = 10
    output_tokens: LengthDistribution = Fixed(128)

    def __post_init__(self) -> None:
        if min(self.num_prefix_tokens, self.num_suffix_tokens, self.num_prefixes) < 1:
            raise ConfigError("prefix_repetition needs at least 1 prefix, 1 prefix token and 1 suffix token")

    def build(
        self, num: int, seed: int, codec: Codec | None = None, vocab_size: int = 32_000
    ) -> list[PromptSample]:
        """``num`` samples, spread over the prefixes as evenly as possible."""
        if num < self.num_prefixes:
            raise ConfigError(
                f"{num} prompts cannot use {self.num_prefixes} prefixes",
                hint=f"raise --num-prompts to {self.num_prefixes} or lower --prefix-repetition-num-prefixes",
            )
        rng = random.Random(seed)
        writer = PromptWriter(codec, vocab_size, rng)
        prefixes = [writer.write(self.num_prefix_tokens)[0] for _ in range(self.num_prefixes)]
        samples = []
        for place in range(num):
            group = place % self.num_prefixes
            ids, text = writer.write(self.num_suffix_tokens, prefixes[group])
            samples.append(PromptSample(ids, text, len(ids), self.output_tokens.draw(rng), group))
        rng.shuffle(samples)
        return samples


@dataclass(frozen=True, slots=True)
class ShareGptDataset:
    """First question and answer of recorded conversations (the ShareGPT JSON file format).

    The limits are those vLLM's benchmark uses, so that numbers compare: both sides at least 4 tokens, the
    prompt at most 1024, both together at most 2048. ``num_output_tokens`` overrides the recorded answer's
    length.
    """

    path: Path
    num_output_tokens: int | None = None
    min_tokens: int = 4
    max_prompt_tokens: int = 1024
    max_total_tokens: int = 2048

    def build(self, num: int, seed: int, codec: Codec) -> list[PromptSample]:
        """``num`` samples; a file with too few is drawn from again."""
        conversations = self._read()
        rng = random.Random(seed)
        rng.shuffle(conversations)
        samples: list[PromptSample] = []
        for question, answer in conversations:
            if len(samples) == num:
                break
            sample = self._try_sample(question, answer, codec)
            if sample is not None:
                samples.append(sample)
        if not samples:
            raise ConfigError(f"{self.path}: no conversation fits the length limits")
        samples.extend(rng.choices(samples, k=num - len(samples)))
        return samples

    def _try_sample(self, question: str, answer: str, codec: Codec) -> PromptSample | None:
        ids = tuple(codec.encode(question, add_special_tokens=False))
        num_answer = len(codec.encode(answer, add_special_tokens=False))
        num_output = self.num_output_tokens or num_answer
        answer_too_short = self.num_output_tokens is None and num_answer < self.min_tokens
        if len(ids) < self.min_tokens or answer_too_short:
            return None
        if len(ids) > self.max_prompt_tokens or len(ids) + num_output > self.max_total_tokens:
            return None
        return PromptSample(ids, question, len(ids), num_output)

    def _read(self) -> list[tuple[str, str]]:
        hint = "give a ShareGPT JSON file: a list of {conversations: [{from, value}, ...]}"
        with boundary(ConfigError, f"cannot read dataset {self.path}", hint=hint):
            rows: list[Any] = json.loads(self.path.read_text(encoding="utf-8"))
            turns = [row.get("conversations", row.get("conversation", [])) for row in rows]
            return [(str(t[0]["value"]), str(t[1]["value"])) for t in turns if len(t) >= 2]


_PLAIN_WORDS = ("river", "stone", "music", "paper", "light", "green", "seven", "table", "north", "glass")


def write_plain_text(num_words: int, rng: random.Random) -> str:
    """English words for a server whose tokenizer is not at hand; about one token each."""
    return " ".join(rng.choices(_PLAIN_WORDS, k=num_words))


def build_plain_random(dataset: RandomDataset, num: int, seed: int) -> list[PromptSample]:
    """RandomDataset without a tokenizer: text only, lengths are word counts and so an estimate."""
    rng = random.Random(seed)
    prefix = write_plain_text(dataset.num_prefix_tokens, rng)
    samples = []
    for _ in range(num):
        own = dataset.input_tokens.draw(rng)
        text = f"{prefix} {write_plain_text(own, rng)}".strip()
        count = own + dataset.num_prefix_tokens
        samples.append(PromptSample((), text, count, dataset.output_tokens.draw(rng)))
    return samples
