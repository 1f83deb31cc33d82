"""The options of a config section, read from the dataclass itself: one schema for flags, env, YAML and docs.

A field declared with :func:`opt` has a flag and an environment variable; a plain field is reached by YAML and
``--set section.field=value`` only. The docstring under a field is its help text and its reference
documentation.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Union

from xllm.errors import ConfigError

ENV_PREFIX = "XLLM_"
TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*$", re.IGNORECASE)
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}i": 1024**_power}
    _UNITS[f"{_letter}b"] = 1000**_power

Kind = Literal["text", "int", "float", "bool", "size", "texts"]


def opt(
    default: Any,
    flag: str,
    *aliases: str,
    secret: bool = False,
    negative_aliases: tuple[str, ...] = (),
) -> Any:
    """A field with a flag (and so an environment variable); ``secret`` values are masked wherever printed."""
    metadata = {"flag": flag, "aliases": aliases, "secret": secret, "negative_aliases": negative_aliases}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One field of one section, with every way of setting it."""

    section: str
    """Name of the section, e.g. ``cache``."""
    name: str
    """Name of the field, e.g. ``block_size``."""
    kind: Kind
    """How a text is parsed; ``size`` is bytes with an optional unit."""
    choices: tuple[str, ...]
    """The allowed words, or () where any value of the kind is allowed."""
    nullable: bool
    """True when "auto" (or ``None``) means: decide for me."""
    default: Any
    """The value when nobody says anything."""
    flag: str
    """The command-line flag, or "" for an option without one."""
    aliases: tuple[str, ...]
    """Other spellings of the flag."""
    negative_aliases: tuple[str, ...]
    """Other spellings of the ``--no-`` form of a bool."""
    secret: bool
    """True when the value must never be printed."""
    doc: str
    """The docstring under the field."""

    @property
    def key(self) -> str:
        """``section.field``, the name used by --set and YAML."""
        return f"{self.section}.{self.name}"

    @property
    def env(self) -> str:
        """The environment variable, or "" for an option without a flag."""
        return ENV_PREFIX + self.flag.removeprefix("--").replace("-", "_").upper() if self.flag else ""

    def parse(self, value: Any, where: str) -> Any:
        """Turn a text, or a YAML value, into the field's type.

        Raises:
            ConfigError: the value is not of the option's kind; the message names ``where`` it came from.
        """
        if self.nullable and (
            value is None or (isinstance(value, str) and value.lower() in ("auto", "none"))
        ):
            return None
        parsed = _PARSERS[self.kind](value)
        if parsed is None:
            raise ConfigError(f"{where}: {self._shown(value)} is not {_KIND_WORDS[self.kind]}")
        if self.choices and parsed not in self.choices:
            raise ConfigError(
                f"{where}: {self._shown(value)} is not a known value",
                hint="use one of " + ", ".join(self.choices),
            )
        return parsed

    def _shown(self, value: Any) -> str:
        return "the value" if self.secret else repr(value)


def parse_bytes(value: Any) -> int | None:
    """Bytes from ``2GiB``, ``512M``, ``1.5gb`` or a number; None when it is not a size. K, M, G are powers
    of 1024."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None or match[2].lower() not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(num_bytes: float) -> str:
    """``1.50 GiB``: for people."""
    for unit, power in (("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if abs(num_bytes) >= 1024**power:
            return f"{num_bytes / 1024**power:.2f} {unit}"
    return f"{int(num_bytes)} B"


def options_of(section: str, cls: type[Any]) -> tuple[Option, ...]:
    """The options of one section's dataclass, in the order they are declared."""
    docs = field_docs(cls)
    hints = typing.get_type_hints(cls)
    options = []
    for spec in dataclasses.fields(cls):
        kind, choices, nullable = _kind_of(hints[spec.name], spec.name)
        options.append(
            Option(
                section=section,
                name=spec.name,
                kind=kind,
                choices=choices,
                nullable=nullable,
                default=spec.default,
                flag=spec.metadata.get("flag", ""),
                aliases=spec.metadata.get("aliases", ()),
                negative_aliases=spec.metadata.get("negative_aliases", ()),
                secret=spec.metadata.get("secret", False),
                doc=docs.get(spec.name, ""),
            )
        )
    return tuple(options)


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field of a class, read from its source; empty when there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    docs = {}
    for node, following in pairwise(body):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[node.target.id] = " ".join(str(following.value.value).split())
    return docs


def require(problems: Iterable[tuple[bool, str]], section: str) -> None:
    """Own-field checks of a section: raise one error that lists every broken rule.

    Raises:
        ConfigError: at least one rule is broken.
    """
    broken = [text for is_fine, text in problems if not is_fine]
    if broken:
        raise ConfigError("; ".join(f"{section}.{text}" for text in broken))


def to_plain(config: Any) -> dict[str, Any]:
    """A section or a composition as nested dicts of plain values; the inverse is ``load.from_mapping``."""
    plain: dict[str, Any] = {}
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            value = to_plain(value)
        elif isinstance(value, tuple):
            value = list(value)
        plain[spec.name] = value
    return plain


def _kind_of(hint: Any, name: str) -> tuple[Kind, tuple[str, ...], bool]:
    nullable = False
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not types.NoneType]
        nullable = len(members) < len(typing.get_args(hint))
        if len(members) != 1:
            raise TypeError(f"option {name} has more than one type: {hint}")
        hint = members[0]
    if typing.get_origin(hint) is Literal:
        return "text", typing.get_args(hint), nullable
    if typing.get_origin(hint) is tuple:
        return "texts", (), nullable
    if hint is int and name.endswith("_bytes"):
        return "size", (), nullable
    kinds: Mapping[type[Any], Kind] = {str: "text", int: "int", float: "float", bool: "bool"}
    return kinds[hint], (), nullable


def _parse_text(value: Any) -> str | None:
    return value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None


def _parse_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d[\d_]*", value.strip()):
        return int(value)
    return None


def _parse_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parse_bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    return True if word in TRUE_WORDS else False if word in FALSE_WORDS else None


def _parse_texts(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(part, str | int) for part in value):
        return tuple(str(part) for part in value)
    return None


_PARSERS: Mapping[Kind, Any] = {
    "text": _parse_text,
    "int": _parse_int,
    "float": _parse_float,
    "bool": _parse_bool,
    "size": parse_bytes,
    "texts": _parse_texts,
}
_KIND_WORDS: Mapping[Kind, str] = {
    "text": "a text",
    "int": "a whole number",
    "float": "a finite number",
    "bool": "a yes or no (true, false)",
    "size": "a size (bytes, or a number with KiB, MiB, GiB)",
    "texts": "a list of texts (comma separated)",
}
