"""IncrementalDetokenizer: token ids in, finished text out.

INVARIANTS
- The concatenation of every `push` and one `flush` is the decode of all ids, for any chunking.
- Text once returned is final: an incomplete character is held back (at most 3 bytes, or one window) until it
  is complete, proven invalid, or flushed.
- The work per token does not depend on how many tokens came before.

The window technique (decode a short window with and without the new tokens and return the difference) is the
public idea used by every serving framework. It is needed only for decoders without an exact form, see
`decoding`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

from xllm.text.decoding import DecodeKind
from xllm.text.tokenizer import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")
_PROMPT_WINDOW = 8
_MAX_HELD_TOKENS = 16


class _Stream(Protocol):
    """One decoding kind: ids that give text in, finished text out; ``flush`` ends an unfinished character."""

    def push(self, ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class _ByteStream:
    """BYTES: every token is bytes; an incremental UTF-8 decoder holds back at most three of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = _UTF8("replace")
        self._holds_back = False

    def push(self, ids: Sequence[int]) -> str:
        data = b"".join([self._tokenizer.token_bytes(i) or b"" for i in ids])
        if data.isascii() and not self._holds_back:  # most tokens
            return data.decode("ascii")
        text = self._decoder.decode(data)
        self._holds_back = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._holds_back = False
        return text


class _PieceStream:
    """PIECES: text pieces, and runs of byte tokens that a piece ends; the head is stripped once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = _UTF8("replace")
        self._left_to_strip = tokenizer.plan.strip_count

    def push(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        for token_id in ids:
            piece = self._tokenizer.piece(token_id)
            if isinstance(piece, int):
                parts.append(self._decoder.decode(bytes([piece])))
            else:
                parts.append(self._end_run())
                parts.append(piece or "")
        return self._strip("".join(parts))

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text

    def _strip(self, text: str) -> str:
        while self._left_to_strip and text:
            if not text.startswith(self._tokenizer.plan.strip_char):
                self._left_to_strip = 0
                break
            text = text[len(self._tokenizer.plan.strip_char) :]
            self._left_to_strip -= 1
        return text


class _WindowStream:
    """WINDOW: text = decode(window + new) - decode(window); the window is what came last."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._held: list[int] = []

    def push(self, ids: Sequence[int]) -> str:
        return "".join([self._push_one(token_id) for token_id in ids])

    def flush(self) -> str:
        return self._take(final=True)

    def _push_one(self, token_id: int) -> str:
        self._held.append(token_id)
        return self._take(final=len(self._held) >= _MAX_HELD_TOKENS)

    def _take(self, *, final: bool) -> str:
        if not self._held:
            return ""
        before = self._tokenizer.decode(self._window, skip_special_tokens=False) if self._window else ""
        after = self._tokenizer.decode([*self._window, *self._held], skip_special_tokens=False)
        may_change = self._tokenizer.plan.may_split_characters and after.endswith("\ufffd")
        if may_change and not final:
            return ""
        self._window, self._held = self._held, []
        return after[len(before) :]


class IncrementalDetokenizer:
    """Text of one choice. With ``prompt_ids`` the text continues the prompt: a leading space is kept."""

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        streams: dict[DecodeKind, Callable[[Tokenizer], _Stream]] = {
            DecodeKind.BYTES: _ByteStream,
            DecodeKind.PIECES: _PieceStream,
            DecodeKind.WINDOW: _WindowStream,
        }
        self._stream: _Stream = streams[tokenizer.plan.kind](tokenizer)
        if prompt_ids:
            # Only the end of the prompt matters: enough to complete a character and to be past the head.
            tail = self._last_visible(prompt_ids)
            self._stream.push(tail)

    def _last_visible(self, prompt_ids: Sequence[int]) -> list[int]:
        tail: list[int] = []
        for token_id in reversed(prompt_ids):
            tail.extend(self._tokenizer.visible([token_id], self._skip_special_tokens))
            if len(tail) == _PROMPT_WINDOW:
                break
        return tail[::-1]

    def push(self, ids: Sequence[int]) -> str:
        """Text that became final with ``ids`` (may be empty)."""
        return self._stream.push(self._tokenizer.visible(ids, self._skip_special_tokens))

    def flush(self) -> str:
        """The held-back rest, with U+FFFD for what never became a character."""
        return self._stream.flush()
