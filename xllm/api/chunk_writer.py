"""ChunkWriter: the bytes of a stream's events, of which chats and completions each have their own middle.

The frequent event, text alone, is three joins of ready-made bytes; every other one is encoded whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xllm.api.call import usage_of
from xllm.api.choice_text import Delta
from xllm.api.generation import Generation
from xllm.api.protocol import StreamOptions
from xllm.api.sse import DONE, json_bytes


class ChunkWriter:
    """Writes the events of one call."""

    def __init__(
        self,
        generation: Generation,
        head: Mapping[str, Any],
        around_text: tuple[bytes, bytes],
        options: StreamOptions | None,
        *,
        shows_text_alone: bool,
    ) -> None:
        """Make ready what every event shares.

        Args:
            generation: the call, already started.
            head: what every event begins with; ``id`` names the event.
            around_text: of a choice, between its index and the text, and between the text and ``logprobs``.
            options: the client's; None = none.
            shows_text_alone: whether an event may be nothing but text.
        """
        self._generation = generation
        self._has_usage = bool(options and options.include_usage)
        self._has_running_usage = bool(options and options.continuous_usage_stats and self._has_usage)
        self._is_plain = shows_text_alone and not self._has_running_usage
        self._head = json_bytes(head)[:-1]
        name = head["id"].encode()
        self._ids = [b"id: %b:%d:" % (name, choice.index) for choice in generation.choices]
        before, after = around_text
        self._before = [
            b'\ndata: %b,"choices":[{"index":%d,%b' % (self._head, choice.index, before)
            for choice in generation.choices
        ]
        null_usage = b',"usage":null' if self._has_usage else b""
        self._after = b'%b,"logprobs":null,"finish_reason":null}]%b}\n\n' % (after, null_usage)

    def events(self, deltas: Sequence[Delta], choice_of: Callable[[Delta], dict[str, Any]]) -> bytes:
        """One event per choice with news; ``choice_of`` makes the choice of one that is more than text."""
        parts: list[bytes] = []
        for delta in deltas:
            if not self._is_plain or delta.finish_reason is not None:
                parts.append(self.whole(delta.index, delta.num_tokens, choice_of(delta)))
            elif delta.text:
                parts += self.text(delta.index, delta.num_tokens, delta.text)
        return b"".join(parts)

    def text(self, index: int, number: int, text: str) -> tuple[bytes, ...]:
        """The parts of an event of text alone, after ``number`` tokens of the choice."""
        return (self._ids[index], b"%d" % number, self._before[index], json_bytes(text), self._after)

    def whole(self, index: int, number: int, choice: dict[str, Any], **beside: object) -> bytes:
        """An event with this choice, and more ``beside`` the choices."""
        tail: dict[str, Any] = {"choices": [choice], **beside}
        if self._has_usage:
            tail["usage"] = usage_of(self._generation) if self._has_running_usage else None
        body = self._head + b"," + json_bytes(tail)[1:]
        return b"%b%d\ndata: %b\n\n" % (self._ids[index], number, body)

    def closing(self) -> bytes:
        """The usage event where asked for, and the end mark."""
        if not self._has_usage:
            return DONE
        tail = json_bytes({"choices": [], "usage": usage_of(self._generation)})[1:]
        return b"data: " + self._head + b"," + tail + b"\n\n" + DONE
