"""ChoiceText: output tokens of one choice -> text that may be shown, cut exactly at stop strings.

INVARIANTS
- The concatenation of all deltas' text is the same for every way the engine cuts its outputs.
- After a delta with a finish reason no further delta has tokens or text.
- The token that ended a choice (end-of-sequence or a stop id) gives no text unless include_stop_str_in_output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from xllm.text.detokenizer import IncrementalDetokenizer
from xllm.text.stop_strings import StopStringMatcher
from xllm.text.tokenizer import Tokenizer
from xllm.types.output import PositionLogprobs, RequestOutput
from xllm.types.request import Request

ApiFinishReason = Literal["stop", "length", "abort"]


class Delta(Struct):
    """What one step added to one choice."""

    index: int
    """Of the choice in the response (prompts of a batch follow each other)."""
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[PositionLogprobs] = ()
    num_tokens: int = 0
    """Output tokens of this choice so far, these included."""
    finish_reason: ApiFinishReason | None = None
    stop_reason: int | str | None = None
    """The stop id or stop string that ended the choice."""


class ChoiceText:
    """One per choice; fed with the choice's outputs in order."""

    __slots__ = (
        "_detokenizer", "_hides_stop_token", "_matcher", "_min_tokens", "finish_reason", "index", "num_tokens"
    )  # fmt: skip

    def __init__(self, tokenizer: Tokenizer, request: Request, index: int) -> None:
        params = request.sampling
        self.index = index
        self.num_tokens = 0
        self.finish_reason: ApiFinishReason | None = None
        self._min_tokens = params.min_tokens
        self._hides_stop_token = not params.include_stop_str_in_output
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, params.skip_special_tokens, request.prompt_token_ids)
            if params.detokenize
            else None
        )
        self._matcher = (
            StopStringMatcher(params.stop, params.include_stop_str_in_output)
            if params.stop and params.detokenize
            else None
        )

    @property
    def is_finished(self) -> bool:
        """Whether the finish reason was given out."""
        return self.finish_reason is not None

    def push(self, output: RequestOutput) -> Delta:
        """Text and tokens of one output; empty once finished.

        A delta whose ``stop_reason`` is a text means that the engine does not know yet: abort the choice.
        """
        if self.finish_reason is not None:
            return Delta(self.index, num_tokens=self.num_tokens)
        ids = output.token_ids
        reason = output.finish_reason
        hidden = int(reason == "stop" and self._hides_stop_token and bool(ids))
        text, used, matched = self._decode(ids, len(ids) - hidden)
        self.num_tokens += used
        delta = Delta(self.index, text, ids[:used], (output.logprobs or ())[:used], self.num_tokens)
        if matched is None and reason is not None:
            tail, matched = self._flush()
            delta.text += tail
        if matched is not None:
            delta.finish_reason, delta.stop_reason = "stop", matched
        elif reason is not None:
            # Errors and deadlines never come here: the caller raises them.
            delta.finish_reason = reason if reason in ("stop", "length") else "abort"
            delta.stop_reason = output.stop_reason
        self.finish_reason = delta.finish_reason
        return delta

    def _decode(self, ids: Sequence[int], num_shown: int) -> tuple[str, int, str | None]:
        """(text, ids used, the stop string that matched); ids after a match are not used."""
        if self._detokenizer is None:
            return "", len(ids), None
        if self._matcher is None:
            return self._detokenizer.push(ids[:num_shown]), len(ids), None
        parts: list[str] = []
        for position in range(num_shown):
            may_stop = self.num_tokens + position + 1 > self._min_tokens
            piece = self._detokenizer.push(ids[position : position + 1])
            shown, matched = self._matcher.push(piece, may_stop=may_stop)
            parts.append(shown)
            if matched is not None:
                return "".join(parts), position + 1, matched
        return "".join(parts), len(ids), None

    def _flush(self) -> tuple[str, str | None]:
        if self._detokenizer is None:
            return "", None
        tail = self._detokenizer.flush()
        if self._matcher is None:
            return tail, None
        shown, matched = self._matcher.push(tail)
        return shown + self._matcher.flush(), matched
