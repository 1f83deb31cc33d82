"""Prompt + parameters -> Request: the one birthplace of requests, shared by the HTTP handlers and ``LLM``.

Sampling values come from the request, then from the model's generation_config.json, then from neutral defaults. Here
the seed is drawn, bad words become token ids, the length is checked and the block hashes are computed - once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from xllm.api.backend import ServedModel
from xllm.api.text_pipeline import TextPipeline
from xllm.errors import ContextTooLong, InvalidRequest
from xllm.types.block_hash import block_hashes, root_hash
from xllm.types.ids import BlockHash
from xllm.types.request import Request, SessionRef, SloBudgets
from xllm.types.sampling import MAX_SEED, SamplingParams

_INT64 = 2**63
_MAX_ID_CHARS = 128
_MAX_SESSION_CHARS = 256
_MAX_STOP_IDS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """What a request carries besides prompt and sampling."""

    priority: int = 0
    offline: bool = False
    cache_salt: str = ""
    deadline_in_s: float | None = None
    """None: no deadline but the server's."""
    slo: SloBudgets = SloBudgets()
    tenant: str = ""
    session_id: str | None = None
    """None: it belongs to none."""


@dataclass(slots=True)
class Preprocessor:
    """Builds requests for the served model; another revision of it may take its place (``follow``)."""

    model: ServedModel
    text: TextPipeline
    max_seconds: float = 3600.0
    """Deadline of every request; a client may ask for less."""
    _roots: dict[str, BlockHash] = field(default_factory=dict)

    def follow(self, model: ServedModel) -> None:
        """Requests are for this model from now on."""
        if model is not self.model:
            self.model = model
            self._roots.clear()

    def build_request(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        admission: Admission = Admission(),
        *,
        age_s: float = 0.0,
    ) -> Request:
        """A complete request; ``sampling`` may leave seed, max_tokens and bad_words_token_ids open.

        Raises:
            ContextTooLong: prompt and output do not fit the model.
            InvalidRequest: an id outside the vocabulary, or an impossible combination.
        """
        ids = tuple(prompt_ids)
        self._check_prompt(ids)
        sampling = self._finish_sampling(sampling, len(ids))
        assert sampling.seed is not None
        model = self.model
        return Request(
            id=request_id,
            model=model.names[0],
            prompt_token_ids=ids,
            seed=sampling.seed,
            sampling=sampling,
            eos_token_ids=self.text.eos_token_ids,
            priority=_checked(admission.priority, "priority"),
            offline=admission.offline,
            tenant=admission.tenant,
            session=_session(admission.session_id),
            slo=_checked_slo(admission.slo),
            cache_salt=admission.cache_salt,
            age_s=age_s,
            deadline_in_s=self._deadline(admission.deadline_in_s),
            block_hashes=block_hashes(
                ids, block_size=model.block_size, root=self._root(admission.cache_salt)
            ),
            block_hash_size=model.block_size,
        )

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt; an early refusal keeps a huge text from being tokenised for nothing."""
        self.check_text(text)
        return self.text.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def check_text(self, text: str) -> None:
        """No token is longer than 128 characters in practice: a text beyond that per position cannot fit."""
        limit = self.model.max_model_len * _MAX_ID_CHARS
        if len(text) > limit:
            raise ContextTooLong(
                f"the prompt has {len(text)} characters, the model takes {self.model.max_model_len} tokens",
                hint="shorten the prompt",
                param="prompt",
            )

    def default_sampling(self, given: Mapping[str, Any]) -> SamplingParams:
        """SamplingParams of a request: ``given`` values (None = not given) over the model's own defaults."""
        own = self.text.defaults
        values: dict[str, Any] = {
            "temperature": own.temperature,
            "top_p": own.top_p,
            "top_k": own.top_k,
            "min_p": own.min_p,
            "repetition_penalty": own.repetition_penalty,
            "max_tokens": own.max_new_tokens,
        }
        values.update({name: value for name, value in given.items() if value is not None})
        return SamplingParams(**{name: value for name, value in values.items() if value is not None})

    def _check_prompt(self, ids: tuple[int, ...]) -> None:
        model = self.model
        if not ids:
            raise InvalidRequest("the prompt is empty: it has no token", param="prompt")
        if len(ids) >= model.max_model_len:
            raise ContextTooLong(
                f"the prompt has {len(ids)} tokens; the model's context is {model.max_model_len} tokens and the"
                " output needs at least one",
                hint=f"send at most {model.max_model_len - 1} tokens",
                param="prompt",
            )
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            wrong = next(i for i in ids if not 0 <= i < model.vocab_size)
            raise InvalidRequest(
                f"token id {wrong} is not in the vocabulary",
                hint=f"use 0..{model.vocab_size - 1}",
                param="prompt",
            )

    def _finish_sampling(self, params: SamplingParams, num_prompt: int) -> SamplingParams:
        room = self.model.max_model_len - num_prompt
        max_tokens = params.max_tokens
        if max_tokens is None or (max_tokens > room and max_tokens == self.text.defaults.max_new_tokens):
            max_tokens = room
        elif max_tokens > room:
            raise ContextTooLong(
                f"the prompt has {num_prompt} tokens and max_tokens is {max_tokens}; the model's context is"
                f" {self.model.max_model_len} tokens",
                hint=f"ask for at most {room} output tokens",
                param="max_tokens",
            )
        if params.min_tokens > max_tokens:
            raise InvalidRequest(
                f"min_tokens is {params.min_tokens}, at most {max_tokens} tokens can follow",
                param="min_tokens",
            )
        for name in ("stop_token_ids", "allowed_token_ids"):
            self._check_ids(getattr(params, name), name)
        self._check_ids(tuple(params.logit_bias), "logit_bias")
        if len(params.stop_token_ids) > _MAX_STOP_IDS:
            raise InvalidRequest(f"stop_token_ids has more than {_MAX_STOP_IDS} ids", param="stop_token_ids")
        seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
        banned = params.bad_words_token_ids or self._ban(params.bad_words)
        return msgspec.structs.replace(params, max_tokens=max_tokens, seed=seed, bad_words_token_ids=banned)

    def _check_ids(self, ids: tuple[int, ...], name: str) -> None:
        size = self.model.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= size):
            wrong = next(i for i in ids if not 0 <= i < size)
            raise InvalidRequest(f"{name} holds token id {wrong}", hint=f"use 0..{size - 1}", param=name)

    def _ban(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Both spellings of a word, as the beginning of a text and after a space, when each is its own tokens."""
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            bare = word.lstrip()
            for text in (bare, f" {bare}"):
                ids = tuple(self.text.tokenizer.encode(text, add_special_tokens=False))
                if ids:
                    found[ids] = None
        return tuple(found)

    def _deadline(self, wanted_s: float | None) -> float:
        if wanted_s is None:
            return self.max_seconds
        if not 0 < wanted_s < float("inf"):
            raise InvalidRequest(f"timeout_s is {wanted_s}", hint="use a number above 0", param="timeout_s")
        return min(wanted_s, self.max_seconds)

    def _root(self, salt: str) -> BlockHash:
        model = self.model
        if not salt:
            root = self._roots.get("")
            if root is None:
                root = root_hash(block_size=model.block_size, weight_revision=model.revision)
                self._roots[""] = root
            return root
        if len(salt) > 1024:
            raise InvalidRequest(
                f"cache_salt has {len(salt)} characters", hint="use at most 1024", param="cache_salt"
            )
        return root_hash(block_size=model.block_size, weight_revision=model.revision, salt=salt)


def _checked(value: int, name: str) -> int:
    if not -_INT64 <= value < _INT64:
        raise InvalidRequest(f"{name} is {value}", hint="use a 64-bit integer", param=name)
    return value


def _session(session_id: str | None) -> SessionRef | None:
    if session_id is None:
        return None
    if not 0 < len(session_id) <= _MAX_SESSION_CHARS:
        raise InvalidRequest(
            f"session_id has {len(session_id)} characters",
            hint=f"use 1 to {_MAX_SESSION_CHARS} characters, or leave it out",
            param="session_id",
        )
    return SessionRef(id=session_id)


def _checked_slo(slo: SloBudgets) -> SloBudgets:
    for name in ("ttft", "tpot", "ttlt"):
        value = getattr(slo, f"{name}_ms")
        if value is not None and not 0 < value < float("inf"):
            field_name = f"{name}_slo_ms"
            raise InvalidRequest(
                f"{field_name} is {value}", hint="use a number of milliseconds above 0", param=field_name
            )
    return slo


def truncate_ids(ids: Sequence[int], wanted: int | None, side: str | None, room: int) -> Sequence[int]:
    """``truncate_prompt_tokens``: keep ``wanted`` ids (-1: ``room``), cutting on the left unless told otherwise."""
    if wanted is None:
        if side is not None:
            raise InvalidRequest(
                "truncation_side without truncate_prompt_tokens", hint="give both", param="truncation_side"
            )
        return ids
    if wanted < -1 or wanted == 0:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {wanted}", hint="use 1 or more, or -1", param="truncate_prompt_tokens"
        )
    keep = room if wanted == -1 else wanted
    return ids[:keep] if side == "right" else ids[max(0, len(ids) - keep) :]


def check_client_id(value: str | None) -> str | None:
    """A request id chosen by the client: it goes into logs, URLs and event ids."""
    if value is None:
        return None
    if not 0 < len(value) <= _MAX_ID_CHARS or not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidRequest(
            "request_id must be printable ASCII without spaces",
            hint=f"1 to {_MAX_ID_CHARS} characters",
            param="request_id",
        )
    return value
