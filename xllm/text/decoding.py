"""What the decoder of a tokenizer.json does, reduced to one of three kinds that can be streamed exactly.

BYTES   (byte-level BPE: GPT-2, Llama 3, Qwen) every token is a byte string; text = UTF-8 of all of them.
PIECES  (SentencePiece with byte fallback: Llama 2, Mistral, Gemma) every token is text or one byte; runs
        of bytes are UTF-8; the first characters of the whole text may be stripped.
WINDOW  anything else: the text a token adds is the difference of two decodes over a short window.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class DecodeKind(Enum):
    """How token ids become text; see the module docstring."""

    BYTES = "bytes"
    PIECES = "pieces"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The kind of a decoder and the little it needs besides the vocabulary."""

    kind: DecodeKind
    replace: tokenizers.decoders.Decoder | None = None
    """PIECES: what is applied to one token before bytes are looked for (``▁`` becomes a space)."""
    strip_char: str = ""
    strip_count: int = 0
    """PIECES: up to ``strip_count`` leading ``strip_char`` are removed from the whole text."""
    may_split_characters: bool = False
    """WINDOW: one character may span tokens, so a trailing U+FFFD may still change."""


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") == "Sequence":
        return [leaf for child in decoder.get("decoders", ()) for leaf in _flatten(child)]
    return [decoder]


def _build_decoder(leaves: list[Mapping[str, Any]]) -> tokenizers.decoders.Decoder | None:
    """Decoder JSON -> decoder; only a whole tokenizer can be parsed, so an empty one carries it."""
    if not leaves:
        return None
    shell = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": leaves},
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    decoder: tokenizers.decoders.Decoder | None = tokenizers.Tokenizer.from_str(json.dumps(shell)).decoder
    return decoder


def plan_decoding(decoder: Mapping[str, Any] | None) -> DecodePlan:
    """Classify the ``decoder`` entry of a tokenizer.json."""
    leaves = _flatten(decoder)
    types = [str(leaf.get("type")) for leaf in leaves]
    if "ByteLevel" in types and set(types) <= {"ByteLevel", "Fuse"} and types.count("ByteLevel") == 1:
        return DecodePlan(DecodeKind.BYTES)
    if types.count("ByteFallback") == 1:
        at = types.index("ByteFallback")
        before, after = leaves[:at], leaves[at + 1 :]
        strip = after[1] if len(after) == 2 and types[at + 1 :] == ["Fuse", "Strip"] else None
        simple_tail = types[at + 1 :] in ([], ["Fuse"]) or (strip is not None and not strip.get("stop"))
        if simple_tail and all(leaf.get("type") == "Replace" for leaf in before):
            return DecodePlan(
                DecodeKind.PIECES,
                replace=_build_decoder(before),
                strip_char=str(strip["content"]) if strip else "",
                strip_count=int(strip["start"]) if strip else 0,
            )
    return DecodePlan(DecodeKind.WINDOW, may_split_characters="ByteLevel" in types or "ByteFallback" in types)


def fallback_byte(token: str) -> int | None:
    """Value of a SentencePiece byte token such as ``<0x0A>``, else None."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match.group(1), 16) if match else None


def _build_byte_of_char() -> dict[str, int]:
    """GPT-2's printable alphabet: every byte has one character; unprintable bytes are moved above U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    moved = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(0x100 + place): byte for place, byte in enumerate(moved)})
    return table


_BYTE_OF_CHAR = _build_byte_of_char()


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level entry; one outside the alphabet (an added token) is plain UTF-8."""
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode("utf-8", "replace")
