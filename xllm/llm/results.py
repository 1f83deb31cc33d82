"""What LLM returns, in vLLM's shape, and how it is made from what the edge collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xllm.api.choice_text import Delta
from xllm.api.generation import ChoiceResult, Generation
from xllm.text.tokenizer import Tokenizer
from xllm.types.output import PositionLogprobs


@dataclass(slots=True)
class Logprob:
    """One token's log-probability and rank (1 = most likely)."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One choice; in a stream only what is new."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum over the choice's tokens; None when logprobs were not asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    """Per token: the best tokens and the chosen one."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt with its choices."""

    request_id: str
    prompt: str | None
    """None when the prompt was given as token ids."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    finished: bool = True


class ResultMaker:
    """Makes results for one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(
        self, prompt: str | None, generation: Generation, results: Sequence[ChoiceResult]
    ) -> RequestOutput:
        """A prompt with its finished choices."""
        request = generation.requests[0]
        has_logprobs = request.sampling.logprobs is not None
        found = generation.facts[0].prompt_logprobs
        outputs = [
            CompletionOutput(
                index=result.index,
                text=result.text,
                token_ids=result.token_ids,
                cumulative_logprob=sum(p.token.logprob for p in result.logprobs) if has_logprobs else None,
                logprobs=self._positions(result.logprobs) if has_logprobs else None,
                finish_reason=result.finish_reason,
                stop_reason=result.stop_reason,
            )
            for result in results
        ]
        prompt_logprobs = None if found is None else [None if p is None else self._position(p) for p in found]
        return RequestOutput(
            request_id=request.id,
            prompt=prompt,
            prompt_token_ids=list(request.prompt_token_ids),
            outputs=outputs,
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=generation.num_cached_tokens,
        )

    def piece(self, delta: Delta, *, has_logprobs: bool) -> CompletionOutput:
        """What one step added to a choice."""
        return CompletionOutput(
            index=delta.index,
            text=delta.text,
            token_ids=list(delta.token_ids),
            logprobs=self._positions(delta.logprobs) if has_logprobs else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _positions(self, positions: Sequence[PositionLogprobs]) -> list[dict[int, Logprob]]:
        return [self._position(position) for position in positions]

    def _position(self, position: PositionLogprobs) -> dict[int, Logprob]:
        piece = self._tokenizer.token_piece
        return {
            token.token_id: Logprob(token.logprob, token.rank, piece(token.token_id))
            for token in (*position.top, position.token)
        }
