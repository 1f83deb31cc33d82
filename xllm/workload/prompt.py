"""PromptSample: one request of a workload; Codec: what a dataset needs of a tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


class Codec(Protocol):
    """The part of `xllm.text.Tokenizer` that datasets use (this room does not import its neighbour)."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        ...

    @property
    def special_ids(self) -> Collection[int]:
        """Ids that a prompt must not contain by accident."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids to text."""
        ...


@dataclass(frozen=True, slots=True)
class PromptSample:
    """A prompt and how many tokens to ask for.

    ``prompt_ids`` has ``num_prompt_tokens`` entries, or is empty when only text is known (then the count is
    an estimate). With a codec ``text`` encodes to exactly ``prompt_ids``. ``prefix_group`` tells prompts that
    share a prefix.
    """

    prompt_ids: tuple[int, ...]
    text: str | None
    num_prompt_tokens: int
    max_output_tokens: int
    prefix_group: int | None = None
