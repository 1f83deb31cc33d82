"""Log-probabilities as chat and as completions show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xllm.text.tokenizer import Tokenizer
from xllm.types.output import PositionLogprobs, TokenLogprob

_FLOOR = -9999.0
"""JSON has no minus infinity; vLLM's stand-in for an impossible token."""


class LogprobView:
    """Renders tokens for one request; ``as_ids`` shows them as ``token_id:N``."""

    __slots__ = ("_as_ids", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def token(self, token_id: int) -> str:
        """The readable token."""
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_piece(token_id)

    def chat(self, positions: Iterable[PositionLogprobs], num_top: int) -> dict[str, Any]:
        """``{"content": [{token, logprob, bytes, top_logprobs}]}``."""
        content = []
        for position in positions:
            entry = self._chat_token(position.token)
            entry["top_logprobs"] = [self._chat_token(top) for top in position.top[:num_top]]
            content.append(entry)
        return {"content": content}

    def _chat_token(self, token: TokenLogprob) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token.token_id)
        return {
            "token": self.token(token.token_id),
            "logprob": max(token.logprob, _FLOOR),
            "bytes": None if raw is None else list(raw),
        }

    def prompt(self, positions: Sequence[PositionLogprobs | None]) -> list[dict[str, Any] | None]:
        """Format of vLLM's ``prompt_logprobs``: per position token id -> its facts; the first is None."""
        return [None if position is None else self._by_id(position) for position in positions]

    def _by_id(self, position: PositionLogprobs) -> dict[str, Any]:
        return {
            str(token.token_id): {
                "logprob": max(token.logprob, _FLOOR),
                "rank": token.rank,
                "decoded_token": self._tokenizer.token_piece(token.token_id),
            }
            for token in (*position.top, position.token)
        }


class CompletionLogprobs:
    """The completions format: parallel lists; ``text_offset`` runs on over the chunks of a stream."""

    __slots__ = ("_num_top", "_offset", "_view")

    def __init__(self, view: LogprobView, num_top: int) -> None:
        self._view = view
        self._num_top = num_top
        self._offset = 0

    def render(
        self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs | None]
    ) -> dict[str, Any]:
        """One chunk. A position of None (the very first prompt token) has no log-probability."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, position in zip(token_ids, positions, strict=True):
            token = self._view.token(token_id)
            tokens.append(token)
            offsets.append(self._offset)
            self._offset += len(token)
            values.append(None if position is None else max(position.token.logprob, _FLOOR))
            tops.append(None if position is None else self._tops(position))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _tops(self, position: PositionLogprobs) -> dict[str, float]:
        chosen = (*position.top[: self._num_top], position.token)
        return {self._view.token(token.token_id): max(token.logprob, _FLOOR) for token in chosen}
