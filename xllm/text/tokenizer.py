"""Tokenizer: a model directory's tokenizer.json, read with the `tokenizers` library only.

INVARIANTS
- Ids of `tokenizer.json` never change; tokens only named in the configuration files must land on the id given
  there.
- `decode` equals the library's decoder, but for one thing: in a run of byte-fallback tokens only the invalid
  bytes become U+FFFD (the library spoils the whole run, which would take back text that was streamed
  already).
- No truncation, no padding: what the file says about them is training leftovers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from xllm.errors import InvalidRequest, ModelError, boundary
from xllm.text.decoding import DecodeKind, byte_level_bytes, fallback_byte, plan_decoding

_NAMED_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_ID = 2**32 - 1


def _read_json(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if not required:
            return {}
        raise ModelError(f"tokenizer file not found: {path}", hint=_missing_hint(path.parent))
    with boundary(ModelError, f"cannot read {path}", hint="download the file again; it is not valid JSON"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _missing_hint(folder: Path) -> str:
    if (folder / "tokenizer.model").is_file():
        return (
            "only a SentencePiece tokenizer.model is there; save it once with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) to get tokenizer.json"
        )
    return "pass --tokenizer with a directory that holds tokenizer.json"


def _content(value: object) -> str | None:
    """Text of a special token, written as a string or as an added-token object."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return str(value["content"])
    return None


class Tokenizer:
    """Encodes and decodes; safe to use from several threads (the library releases the GIL while encoding)."""

    def __init__(self, library: tokenizers.Tokenizer, config: Mapping[str, Any] | None = None) -> None:
        """``library`` is the parsed tokenizer.json, ``config`` the merged tokenizer_config.json."""
        config = config or {}
        library.no_truncation()
        library.no_padding()
        self._library = library
        self.config: Mapping[str, Any] = config
        self.special_tokens: dict[str, str] = {
            name: text for name in _NAMED_SPECIAL if (text := _content(config.get(name))) is not None
        }
        self.plan = plan_decoding(json.loads(library.to_str()).get("decoder"))
        added = library.get_added_tokens_decoder()
        self.vocab_size: int = max([library.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added)])
        """One more than the highest token id."""
        self.skippable_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        """Ids that `skip_special_tokens` removes."""
        named = (library.token_to_id(text) for text in self.special_tokens.values())
        self.special_ids: frozenset[int] = self.skippable_ids | {i for i in named if i is not None}
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        self.pad_token_id = self._special_id("pad_token")
        self._bytes: dict[int, bytes] = {}
        self._pieces: dict[int, str | int] = {}

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read a Hugging Face model directory.

        Raises ModelError naming the file that is missing, damaged or contradicts tokenizer.json.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        _read_json(file, required=True)
        with boundary(ModelError, f"cannot load {file}", hint="the file is damaged or too new"):
            library = tokenizers.Tokenizer.from_file(str(file))
        config = _read_json(folder / "tokenizer_config.json", required=False)
        special = _read_json(folder / "special_tokens_map.json", required=False)
        merged = {**special, **{key: value for key, value in config.items() if value is not None}}
        _add_missing_tokens(library, _listed_tokens(folder, merged))
        return cls(library, merged)

    def _special_id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._library.token_to_id(text)

    # -- text to ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; ``add_special_tokens`` runs the post-processor of tokenizer.json (BOS, EOS)."""
        with boundary(InvalidRequest, "text cannot be tokenised", hint="send valid Unicode text"):
            return list(self._library.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of several texts, on all cores."""
        with boundary(InvalidRequest, "text cannot be tokenised", hint="send valid Unicode text"):
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encodings]

    def token_to_id(self, token: str) -> int | None:
        """Id of a vocabulary entry (raw spelling), or None."""
        return self._library.token_to_id(token)

    # -- ids to text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; ids outside the vocabulary (padding rows of a model's head) give no text.

        Raises InvalidRequest for an id that is negative or above 2**32.
        """
        ids = list(ids)
        self._check_range(ids)
        text = self._library.decode(ids, skip_special_tokens=skip_special_tokens)
        if self.plan.kind is DecodeKind.PIECES and "\ufffd" in text:
            return self._join_pieces(self.visible(ids, skip_special_tokens))
        return text

    def visible(self, ids: Iterable[int], skip_special_tokens: bool) -> list[int]:
        """The ids that give text: known to the vocabulary and, when asked, not special."""
        skipped = self.skippable_ids if skip_special_tokens else frozenset()
        return [i for i in ids if i not in skipped and self._is_known(i)]

    def _is_known(self, token_id: int) -> bool:
        return token_id in self._bytes or token_id in self._pieces or self.id_to_token(token_id) is not None

    def id_to_token(self, token_id: int) -> str | None:
        """Raw vocabulary entry (``Ġthe``, ``▁the``, ``<0x0A>``), or None for an unknown id."""
        return self._library.id_to_token(token_id) if 0 <= token_id <= _MAX_ID else None

    def token_bytes(self, token_id: int) -> bytes | None:
        """Exact bytes that this token adds to a text (leading space included), or None for an unknown id."""
        try:
            return self._bytes[token_id]
        except KeyError:
            token = self.id_to_token(token_id)
            value = None if token is None else self._find_bytes(token_id, token)
            if value is not None:
                self._bytes[token_id] = value
            return value

    def token_piece(self, token_id: int) -> str:
        """Readable text of one token, as shown with logprobs; part of a character shows as U+FFFD."""
        return (self.token_bytes(token_id) or b"").decode("utf-8", "replace")

    def piece(self, token_id: int) -> str | int | None:
        """PIECES only: the text of a token, the value of a byte token, or None for an unknown id."""
        try:
            return self._pieces[token_id]
        except KeyError:
            token = self.id_to_token(token_id)
            if token is None:
                return None
            text = self.plan.replace.decode([token]) if self.plan.replace is not None else token
            byte = fallback_byte(text)
            self._pieces[token_id] = value = text if byte is None else byte
            return value

    def _find_bytes(self, token_id: int, token: str) -> bytes:
        if self.plan.kind is DecodeKind.BYTES:
            return byte_level_bytes(token)
        if self.plan.kind is DecodeKind.PIECES:
            piece = self.piece(token_id)
            return bytes([piece]) if isinstance(piece, int) else (piece or "").encode()
        # The same token twice: the second occurrence is not at the start, so its leading space is kept.
        once = self._library.decode([token_id], skip_special_tokens=False)
        twice = self._library.decode([token_id, token_id], skip_special_tokens=False)
        return twice[len(once) :].encode()

    def _join_pieces(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        run = bytearray()
        for token_id in ids:
            piece = self.piece(token_id)
            if isinstance(piece, int):
                run.append(piece)
                continue
            parts.append(run.decode("utf-8", "replace"))
            run.clear()
            parts.append(piece or "")
        parts.append(run.decode("utf-8", "replace"))
        return strip_head("".join(parts), self.plan.strip_char, self.plan.strip_count)

    def _check_range(self, ids: Sequence[int]) -> None:
        if ids and (min(ids) < 0 or max(ids) > _MAX_ID):
            wrong = next(i for i in ids if not 0 <= i <= _MAX_ID)
            raise InvalidRequest(f"token id {wrong} is outside 0..{self.vocab_size - 1}", param="tokens")


def strip_head(text: str, char: str, count: int) -> str:
    """Remove up to ``count`` leading ``char``."""
    num = 0
    while num < count and text.startswith(char, num):
        num += 1
    return text[num:]


def _listed_tokens(folder: Path, config: Mapping[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """Tokens named outside tokenizer.json: added_tokens.json (old), added_tokens_decoder (wins)."""
    listed: dict[int, tokenizers.AddedToken] = {}
    plain = _read_json(folder / "added_tokens.json", required=False)
    with boundary(ModelError, f"{folder / 'added_tokens.json'}: expected token -> id"):
        for text, token_id in plain.items():
            listed[int(token_id)] = tokenizers.AddedToken(str(text), normalized=False)
    with boundary(ModelError, f"{folder / 'tokenizer_config.json'}: bad added_tokens_decoder"):
        for key, entry in dict(config.get("added_tokens_decoder") or {}).items():
            known = ("lstrip", "rstrip", "single_word", "normalized", "special")
            flags = {flag: bool(entry[flag]) for flag in known if flag in entry}
            listed[int(key)] = tokenizers.AddedToken(str(entry["content"]), **flags)
    return listed


def _add_missing_tokens(library: tokenizers.Tokenizer, listed: Mapping[int, tokenizers.AddedToken]) -> None:
    for token_id in sorted(listed):
        token = listed[token_id]
        if library.token_to_id(token.content) is None:
            if token.special:
                library.add_special_tokens([token])
            else:
                library.add_tokens([token])
        got = library.token_to_id(token.content)
        if got != token_id:
            raise ModelError(
                f"token {token.content!r} has id {token_id} in the configuration, {got} in tokenizer.json",
                hint="the two files come from different models; download both again",
            )
