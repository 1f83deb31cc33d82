"""Flags of config sections: one schema adds them to a parser and loads what was said."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xllm.base.resolve_here import resolve_here
from xllm.config.load import Loaded, Schema, load
from xllm.config.schema import Option
from xllm.config.show import format_json, format_text


class _Say(argparse.Action):
    """Collects (option, value, flag as written); parsing and checking is the config's work."""

    def __init__(self, *, option: Option, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._option = option

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        flag = option_string or "MODEL"
        negative = flag.startswith("--no-") or flag in self._option.negative_aliases
        value: Any = values if self.nargs != 0 else not negative
        said: list[tuple[Option, Any, str]] = getattr(namespace, "said", None) or []
        if self._option.kind == "texts":
            value = (*_said_before(said, self._option), *_split(str(values)))
        elif flag != "MODEL":
            # Of a repeated flag the last one counts, as usual on command lines.
            said = [entry for entry in said if entry[0].key != self._option.key or entry[2] == "MODEL"]
        namespace.said = [
            *(entry for entry in said if entry[0].kind != "texts" or entry[0].key != self._option.key),
            (self._option, value, flag),
        ]


def add_config_flags(parser: argparse.ArgumentParser, sections: Iterable[str]) -> None:
    """Add MODEL, every flag of ``sections``, --config, --set and --print-config."""
    schema = Schema(sections)
    parser.set_defaults(said=[], sections=schema.sections)
    if "model.model" in schema.by_key:
        parser.add_argument(
            "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, action=_Say,
            option=schema.by_key["model.model"], help="directory or hub id; without it the bundled demo model",
        )  # fmt: skip
    groups: dict[str, Any] = {}
    for option in schema.options:
        if not option.flag:
            continue
        group = groups.setdefault(option.section, None) or parser.add_argument_group(option.section)
        groups[option.section] = group
        names = [option.flag, *option.aliases]
        kwargs: dict[str, Any] = {
            "dest": option.key,
            "default": argparse.SUPPRESS,
            "action": _Say,
            "option": option,
            "help": _help(option),
        }
        if option.kind == "bool":
            names += ["--no-" + name.removeprefix("--") for name in names] + list(option.negative_aliases)
            kwargs["nargs"] = 0
        elif option.choices:
            kwargs["metavar"] = "{" + ",".join(option.choices) + "}"
        else:
            kwargs["metavar"] = (
                option.kind.upper().removesuffix("S") if option.kind == "texts" else option.kind.upper()
            )
        group.add_argument(*names, **kwargs)
    more = parser.add_argument_group("any option")
    more.add_argument("--config", metavar="FILE", help="YAML file: sections, or flag names without dashes")
    more.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.FIELD=VALUE",
        help="set an option that has no flag",
    )
    more.add_argument(
        "--print-config",
        nargs="?",
        const="text",
        choices=("text", "json"),
        help="print every effective value, its source and its reason, and exit",
    )


def load_from_flags(args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Loaded:
    """Merge defaults, file, environment and flags.

    Raises:
        ConfigError: every problem found, together.
    """
    env = os.environ if environ is None else environ
    return load(
        sections=args.sections,
        config_file=args.config or env.get("XLLM_CONFIG") or None,
        environ=env,
        flags=args.said,
        sets=args.set,
    )


def print_config(loaded: Loaded, style: str) -> None:
    """Print the effective configuration as a table or as JSON."""
    resolved = resolve_here(loaded.engine(), sources=loaded.sources)
    print(format_json(loaded, resolved) if style == "json" else format_text(loaded, resolved))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _said_before(said: Iterable[tuple[Option, Any, str]], option: Option) -> tuple[str, ...]:
    return next((value for other, value, _ in said if other.key == option.key), ())


def _help(option: Option) -> str:
    default = "auto" if option.default is None else option.default
    shown = "" if option.default in ((), "") or option.secret else f" [{str(default).lower()}]"
    return (option.doc + shown).replace("%", "%%")
