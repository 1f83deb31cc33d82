"""StopStringMatcher: cuts a text stream exactly at a stop string.

INVARIANTS
- For any chunking the emitted text is the same: the match that *ends* first wins, and of those that end
  together the longest. That is the only rule that does not depend on where chunks are cut.
- Text that could still be the beginning of a stop string is held back; nothing else is.
- After a match nothing more is emitted.
"""

from __future__ import annotations

from collections.abc import Sequence

from xllm.errors import InvalidRequest


class StopStringMatcher:
    """One per choice; ``include_stop_str`` keeps the stop string itself in the text."""

    def __init__(self, stops: Sequence[str], include_stop_str: bool = False) -> None:
        """Raises InvalidRequest for an empty stop string."""
        if any(not stop for stop in stops):
            raise InvalidRequest("a stop string is empty", hint="leave it out", param="stop")
        self._stops = tuple(dict.fromkeys(stops))
        self._include = include_stop_str
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Add text; returns (text to emit, the stop string that matched or None).

        ``may_stop=False`` (min_tokens not reached) passes everything through: neither this text nor what was
        held back can be part of a match.
        """
        if self.matched is not None:
            return "", self.matched
        if not self._stops:
            return text, None
        buffer = self._held + text
        self._held = ""
        if not may_stop:
            return buffer, None
        found = self._find(buffer)
        if found is not None:
            start, stop = found
            self.matched = stop
            return buffer[: start + len(stop)] if self._include else buffer[:start], stop
        keep = self._num_held(buffer)
        if keep:
            self._held = buffer[-keep:]
            buffer = buffer[:-keep]
        return buffer, None

    def flush(self) -> str:
        """The held-back rest, when the choice ended for another reason."""
        text, self._held = self._held, ""
        return text

    def _find(self, buffer: str) -> tuple[int, str] | None:
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if not hits:
            return None
        _, start, stop = min(hits)
        return start, stop

    def _num_held(self, buffer: str) -> int:
        """Length of the longest end of ``buffer`` that begins some stop string (shorter than that string)."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(buffer)), longest, -1):
                if buffer.endswith(stop[:size]):
                    longest = size
                    break
        return longest
