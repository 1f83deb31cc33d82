"""What LLM takes: prompts in their forms, sampling parameters with every type checked."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from xllm.errors import InvalidRequest
from xllm.types.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class GivenPrompt:
    """One prompt: a text, or ids."""

    text: str | None = None
    ids: list[int] | None = None

    @classmethod
    def parse(cls, given: Any) -> GivenPrompt:
        """A text, ``{"prompt": text}`` or ``{"prompt_token_ids": [...]}``; InvalidRequest for anything else."""
        if isinstance(given, str):
            return cls(text=given)
        if isinstance(given, Mapping) and set(given) <= {"prompt", "prompt_token_ids"}:
            if isinstance(ids := given.get("prompt_token_ids"), Sequence) and not isinstance(ids, str):
                text = given.get("prompt")
                return cls(text=text if isinstance(text, str) else None, ids=_as_ids(ids))
            if isinstance(text := given.get("prompt"), str):
                return cls(text=text)
        raise InvalidRequest(
            f"a prompt is {str(given)[:80]!r}",
            hint='give a text, {"prompt": text} or {"prompt_token_ids": [...]}',
            param="prompts",
        )


def _as_ids(ids: Sequence[Any]) -> list[int]:
    try:
        return [operator.index(i) for i in ids]  # also the integers of array libraries
    except TypeError as exc:
        raise InvalidRequest(f"prompt_token_ids: {exc}", hint="give integers", param="prompts") from exc


def listed(prompts: Any) -> list[Any]:
    """One prompt or several, as a list."""
    return [prompts] if isinstance(prompts, str | Mapping) else list(prompts)


def checked(params: SamplingParams) -> SamplingParams:
    """The same with every type checked: a struct made in Python takes whatever it is given."""
    stop: Any = params.stop
    plain = msgspec.to_builtins(params) | ({"stop": [stop]} if isinstance(stop, str) else {})
    try:
        return msgspec.convert(plain, SamplingParams)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"sampling_params: {exc}", hint="see SamplingParams") from exc
