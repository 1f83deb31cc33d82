"""xllm chat: a conversation with any OpenAI-compatible server in the terminal.

Ctrl-C during an answer cancels that request and keeps what was said so far; at the prompt it does nothing but
start a new line. Without a terminal on stdin every line is one message (`echo Hello | xllm chat`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TextIO

from xllm.bench.openai_client import OpenAIClient
from xllm.errors import RequestError, XllmError

DEFAULT_URL = "http://localhost:8000/v1"
HELP = """\
/help          this list
/reset         forget the conversation
/system TEXT   set the system prompt and forget the conversation (no TEXT: remove it)
/exit          end (also Ctrl-D)
Ctrl-C stops the current answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to talk to and how answers are sampled."""
    parser.add_argument("--url", default=DEFAULT_URL, help=f"server [{DEFAULT_URL}]")
    parser.add_argument("--model", help="default: the first the server lists")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--api-key", help="default: $OPENAI_API_KEY, $XLLM_API_KEY")
    group = parser.add_argument_group("sampling (default: the server's)")
    group.add_argument("--temperature", type=float)
    group.add_argument("--top-p", type=float)
    group.add_argument("--top-k", type=int)
    group.add_argument("--max-tokens", type=int)
    group.add_argument("--seed", type=int)
    group.add_argument("--stop", action="append", help="stop string; may be repeated")
    parser.add_argument("--no-stats", action="store_true", help="no line of figures after an answer")


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    names = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop")
    fields = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    key = args.api_key or os.environ.get("OPENAI_API_KEY") or os.environ.get("XLLM_API_KEY")
    client = OpenAIClient(args.url, api_key=key)
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr, shows_stats=not args.no_stats)
    with asyncio.Runner() as runner:
        try:
            runner.run(_open(client))
            model = args.model or str(runner.run(client.first_model())["id"])
            chat = Chat(client, model, fields=fields, system=args.system)
            return talk(runner, chat, terminal)
        finally:
            runner.run(_close(client))


async def _open(client: OpenAIClient) -> None:
    await client.__aenter__()


async def _close(client: OpenAIClient) -> None:
    await client.__aexit__()


@dataclass(slots=True)
class Figures:
    """What is known about one answer; tokens are the server's usage, or chunks where it sends none."""

    num_tokens: int = 0
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    first_s: float | None = None
    last_s: float = 0.0
    finish_reason: str | None = None

    def line(self) -> str:
        """For people: speed after the first token, waiting time, cached part of the prompt."""
        parts = [f"{self.num_tokens} tokens"]
        if self.first_s is not None:
            if self.num_tokens > 1 and self.last_s > self.first_s:
                parts.insert(0, f"{(self.num_tokens - 1) / (self.last_s - self.first_s):.1f} tok/s")
            parts.append(f"first after {self.first_s:.2f} s")
        if self.num_cached_tokens is not None:
            parts.append(f"{self.num_cached_tokens} of {self.num_prompt_tokens} prompt tokens cached")
        if self.finish_reason not in (None, "stop"):
            parts.append(f"ended by {self.finish_reason}")
        return " · ".join(parts)


@dataclass(slots=True)
class Chat:
    """One conversation: history and the request fields that every turn repeats."""

    client: OpenAIClient
    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self, system: str | None) -> None:
        """Forget the conversation."""
        self.system = system or None
        self.messages.clear()

    async def ask(self, text: str, out: TextIO) -> Figures:
        """Send one message and write the answer to ``out`` as it comes.

        The turn enters the history also when it is stopped halfway (with what was said); when it fails before
        any answer it does not, so that it can be asked again.
        """
        question = {"role": "user", "content": text}
        head = [{"role": "system", "content": self.system}] if self.system else []
        body = {
            "model": self.model,
            "messages": [*head, *self.messages, question],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }
        said: list[str] = []
        try:
            return await self._receive(body, said, out)
        finally:
            if said:
                self.messages += [question, {"role": "assistant", "content": "".join(said)}]

    async def _receive(self, body: Mapping[str, Any], said: list[str], out: TextIO) -> Figures:
        figures = Figures()
        start_s = time.perf_counter()
        async with aclosing(self.client.stream("/v1/chat/completions", body)) as events:
            async for event in events:
                for choice in event.get("choices") or ():
                    delta = choice.get("delta") or {}
                    figures.finish_reason = choice.get("finish_reason") or figures.finish_reason
                    thought = str(delta.get("reasoning_content") or delta.get("reasoning") or "")
                    content = str(delta.get("content") or "")
                    if thought or content:
                        figures.last_s = time.perf_counter() - start_s
                        figures.first_s = figures.last_s if figures.first_s is None else figures.first_s
                        figures.num_tokens += 1
                        print(thought + content, end="", file=out, flush=True)
                    if content:
                        said.append(content)
                _add_usage(figures, event.get("usage"))
        return figures


def _add_usage(figures: Figures, usage: Mapping[str, Any] | None) -> None:
    if not usage:
        return
    details = usage.get("prompt_tokens_details") or {}
    figures.num_tokens = int(usage.get("completion_tokens") or 0)
    figures.num_prompt_tokens = usage.get("prompt_tokens")
    figures.num_cached_tokens = details.get("cached_tokens")


class Terminal:
    """Reads lines and writes notes; dim notes and a prompt on a terminal, notes on stderr otherwise."""

    def __init__(self, source: TextIO, out: TextIO, err: TextIO, *, shows_stats: bool = True) -> None:
        self.source = source
        self.out = out
        self._err = err
        self._shows_stats = shows_stats
        self.is_interactive = source.isatty() and out.isatty()
        if self.is_interactive:
            # Line editing and history for input(), where the platform has them.
            try:
                import readline  # noqa: F401
            except ImportError:
                pass

    def read(self) -> str | None:
        """The next line without its end, or None at the end of input."""
        if self.is_interactive:
            try:
                return input("> ")
            except EOFError:
                return None
        line = self.source.readline()
        return line.rstrip("\r\n") if line else None

    def note(self, text: str) -> None:
        """Something that is not part of an answer."""
        if self.is_interactive:
            print(f"\x1b[2m{text}\x1b[0m", file=self.out, flush=True)
        else:
            print(text, file=self._err, flush=True)

    def stats(self, figures: Figures) -> None:
        """The figures of an answer."""
        if self._shows_stats:
            self.note(f"[{figures.line()}]")


def talk(runner: asyncio.Runner, chat: Chat, terminal: Terminal) -> int:
    """Read, answer, repeat. 1 when a message of a piped input could not be answered."""
    if terminal.is_interactive:
        terminal.note(f"{chat.model} · /help lists the commands")
    status = 0
    while True:
        try:
            line = terminal.read()
        except KeyboardInterrupt:
            if not terminal.is_interactive:
                raise
            print(file=terminal.out)
            continue
        if line is None:
            return status
        text = line.strip()
        if not text:
            continue
        if text.startswith("/"):
            if not _command(text, chat, terminal):
                return status
            continue
        if not _turn(runner, chat, text, terminal) and not terminal.is_interactive:
            status = 1


def _command(text: str, chat: Chat, terminal: Terminal) -> bool:
    """Carry out a /command; False ends the conversation."""
    name, _, rest = text.partition(" ")
    if name in ("/exit", "/quit"):
        return False
    if name == "/reset":
        chat.reset(chat.system)
        terminal.note("conversation forgotten")
    elif name == "/system":
        chat.reset(rest.strip())
        terminal.note("system prompt set" if chat.system else "system prompt removed")
    elif name == "/help":
        terminal.note(HELP)
    else:
        terminal.note(f"unknown command {name}\n{HELP}")
    return True


def _turn(runner: asyncio.Runner, chat: Chat, text: str, terminal: Terminal) -> bool:
    """One question and its answer; False when it failed."""
    try:
        figures = runner.run(chat.ask(text, terminal.out))
    except KeyboardInterrupt:
        # The connection is closed by the loop's next turns, and the server must hear of it now.
        runner.run(asyncio.sleep(0.01))
        if not terminal.is_interactive:
            raise
        print(file=terminal.out)
        terminal.note("[stopped]")
        return True
    except XllmError as exc:
        print(file=terminal.out)
        terminal.note(f"error: {exc}")
        if isinstance(exc, RequestError) and terminal.is_interactive:
            terminal.note("the message was not added to the conversation")
        return False
    print(file=terminal.out, flush=True)
    terminal.stats(figures)
    return True
