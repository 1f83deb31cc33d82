"""``xllm COMMAND``: finds the subcommand, runs it, turns errors into one message and an exit status.

Exit status: 0 done, 1 failed, 2 the command line or the configuration is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, Protocol, cast

from xllm import __version__
from xllm.base.garbage import start_without_collecting
from xllm.errors import ConfigError, XllmError

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("xllm.cli.serve", "serve a model over an OpenAI-compatible HTTP API"),
    "chat": ("xllm.cli.chat", "talk to a server in the terminal"),
    "bench": ("xllm.cli.bench", "measure a server or the engine"),
    "doctor": ("xllm.cli.doctor", "show the machine, versions and what would be chosen"),
    "engine": ("xllm.cli.engine", "run one engine process"),
    "service": ("xllm.cli.service", "run the HTTP edge over engines that run elsewhere"),
    "cluster": ("xllm.cli.cluster", "show the instances of a registry, or drain one"),
}
SERVERS = ("serve", "service", "engine")
"""Commands whose process serves until it is told to end."""


class Command(Protocol):
    """What the module of a subcommand holds."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its flags."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit status."""
        ...


class Parser(argparse.ArgumentParser):
    """Raises ConfigError in place of printing usage; no abbreviated flags."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse for whatever it cannot parse."""
        raise ConfigError(message, hint=f"see {self.prog} --help")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown flag is an error that names the nearest.

        Raises:
            ConfigError: the command line is wrong.
        """
        args, rest = self.parse_known_args([_canonical(word) for word in argv])
        if rest:
            near = difflib.get_close_matches(rest[0].partition("=")[0], self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise ConfigError(f"unknown argument {rest[0]!r}", hint=hint)
        return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``xllm`` with ``argv`` (default: the process's) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("--version", "-V", "version"):
        print(f"xllm {__version__}")
        return 0
    if not words or words[0] in ("--help", "-h", "help"):
        print(_usage())
        return 0 if words else 2
    if argv is None and words[0] in SERVERS:  # a process of its own
        start_without_collecting()
    try:
        return _run(words[0], words[1:])
    except XllmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing can be said any more
        return 1


def _run(name: str, argv: Sequence[str]) -> int:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "commands: " + ", ".join(COMMANDS)
        raise ConfigError(f"unknown command {name!r}", hint=hint)
    module, summary = COMMANDS[name]
    command = cast(Command, import_module(module))
    parser = Parser(prog=f"xllm {name}", description=summary)
    command.add_arguments(parser)
    return command.run(parser.parse_all(argv))


def _canonical(word: str) -> str:
    """``--max_model_len=1`` -> ``--max-model-len=1``; a bare --print-config must not take the next word."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    flag = flag.replace("_", "-")
    return "--print-config=text" if flag == "--print-config" and not equals else flag + equals + value


def _usage() -> str:
    width = max(len(name) for name in COMMANDS)
    rows = [f"  {name.ljust(width)}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            f"xllm {__version__}",
            "",
            "usage: xllm COMMAND [flags]",
            "",
            *rows,
            "",
            "xllm COMMAND --help lists the flags.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
