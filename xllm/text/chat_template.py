"""ChatTemplate: messages -> prompt text, with the server's own Jinja2 template in a sandbox.

Templates come from the model directory or the operator, never from a request. The environment offers what
published Hugging Face templates use: loop controls, `raise_exception`, `strftime_now`, `tojson` without HTML
escapes, `{% generation %}` blocks (their content is kept; training masks are not our business).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from xllm.errors import InvalidRequest, ModelError, boundary
from xllm.text.content_format import ContentFormat, detect_content_format

Message = Mapping[str, Any]

# Two private-use characters: no tokenizer, template or user writes them, so the cut is exact.
_CUT = "\ue000\ue001xllm-continue\ue001\ue000"


class _GenerationBlock(Extension):
    """Accepts `{% generation %}...{% endgeneration %}` and renders its content in place."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _build_environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: now().strftime(form)
    return environment


class ChatTemplate:
    """One or several named templates ("default", "tool_use") and the special tokens they may print."""

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        source: str = "chat template",
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile; raises ModelError naming ``source`` when a template is not valid Jinja2."""
        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        if not named:
            raise ModelError(f"{source}: no template in it")
        self.sources: Mapping[str, str] = named
        self._special_tokens = dict(special_tokens or {})
        environment = _build_environment(now)
        self._compiled: dict[str, jinja2.Template] = {}
        self._formats: dict[str, ContentFormat] = {}
        for name, text in named.items():
            with boundary(ModelError, f"{source} ({name}) is not a valid template"):
                self._compiled[name] = environment.from_string(text)
                self._formats[name] = detect_content_format(environment.parse(text))

    @classmethod
    def try_from_dir(
        cls,
        path: str | Path,
        special_tokens: Mapping[str, str] | None = None,
        *,
        override: str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> ChatTemplate | None:
        """The template of a model directory, or None when the model has none.

        ``override`` (--chat-template) is a file or the template itself and wins. Then chat_template.jinja
        with additional_chat_templates/*.jinja, then `chat_template` in tokenizer_config.json (text, or a list
        of named templates), then chat_template.json.
        """
        if override is not None:
            return cls(_read_override(override), special_tokens, source="--chat-template", now=now)
        folder = Path(path)
        found, source = _find_templates(folder)
        return cls(found, special_tokens, source=source, now=now) if found else None

    def content_format(self, *, has_tools: bool = False) -> ContentFormat:
        """What the template that would be used wants message content to be."""
        return self._formats[self._select(has_tools)]

    def _select(self, has_tools: bool) -> str:
        if has_tools and "tool_use" in self._compiled:
            return "tool_use"
        if "default" in self._compiled:
            return "default"
        if len(self._compiled) == 1:
            return next(iter(self._compiled))
        raise InvalidRequest(
            f"the model has chat templates {sorted(self._compiled)} and none is named 'default'",
            hint="start the server with --chat-template",
        )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Prompt text. ``template_kwargs`` become template variables, e.g. ``enable_thinking``.

        Raises InvalidRequest with the template's own words when it refuses the conversation.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other",
                hint="set add_generation_prompt to false",
                param="continue_final_message",
            )
        name = self._select(bool(tools))
        chat = [_normalise(message, self._formats[name]) for message in messages]
        if continue_final_message:
            chat = _mark_end(chat)
        own: dict[str, Any] = {
            "messages": chat,
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
        }
        taken = sorted(own.keys() & (template_kwargs or {}).keys())
        if taken:
            raise InvalidRequest(
                f"chat_template_kwargs sets {taken[0]!r}, which has its own field",
                param="chat_template_kwargs",
            )
        text = self._run(name, {**self._special_tokens, **(template_kwargs or {}), **own})
        if not continue_final_message:
            return text
        end = text.rfind(_CUT)
        if end < 0:
            raise InvalidRequest(
                "the chat template does not print the final message, so it cannot be continued",
                param="continue_final_message",
            )
        return text[:end]

    def _run(self, name: str, variables: Mapping[str, Any]) -> str:
        try:
            return self._compiled[name].render(variables)
        except jinja2.TemplateError as exc:
            raise InvalidRequest(f"the chat template refused the messages: {exc}", param="messages") from exc
        except Exception as exc:
            # A template is a foreign program: any mistake in it surfaces here as whatever Python raises.
            raise InvalidRequest(
                f"the chat template failed on these messages: {type(exc).__name__}: {exc}", param="messages"
            ) from exc


def _normalise(message: Message, wanted: ContentFormat) -> dict[str, Any]:
    """One message as templates expect it: content in the wanted form, tool-call arguments as objects."""
    result = dict(message)
    content = result.get("content")
    if wanted == "string":
        result["content"] = _as_text(content)
    elif isinstance(content, str):
        result["content"] = [{"type": "text", "text": content}]
    elif content is None:
        result["content"] = []
    calls = result.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        result["tool_calls"] = [_normalise_call(call) for call in calls]
    return result


def _as_text(content: object) -> str:
    """Text parts are joined by newlines; a part of another type cannot be shown to a text template."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(
            f"message content must be a string or a list of parts, not {type(content).__name__}",
            param="messages",
        )
    texts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(str(part["text"]))
        elif isinstance(part, Mapping) and isinstance(part.get("refusal"), str):
            texts.append(str(part["refusal"]))
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidRequest(
                f"this model takes text only; a message part has type {kind!r}", param="messages"
            )
    return "\n".join(texts)


def _normalise_call(call: object) -> object:
    """Arguments travel as a JSON string, templates print an object; text that is not an object stays text."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    function = dict(call["function"])
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            function["arguments"] = parsed
    return {**call, "function": function}


def _mark_end(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not chat:
        raise InvalidRequest("there is no final message to continue", param="messages")
    last = dict(chat[-1])
    content = last["content"]
    if isinstance(content, str):
        last["content"] = content + _CUT
    else:
        parts = [dict(part) for part in content]
        if not parts or not isinstance(parts[-1].get("text"), str):
            raise InvalidRequest(
                "the final message does not end in text, so it cannot be continued", param="messages"
            )
        parts[-1]["text"] += _CUT
        last["content"] = parts
    return [*chat[:-1], last]


# -- where templates are found


def _read_override(override: str) -> str:
    path = Path(override)
    is_inline = any(mark in override for mark in "{}\n")
    if is_inline:
        return override
    with boundary(
        ModelError, f"cannot read --chat-template {override}", hint="give a file or the template itself"
    ):
        return path.read_text(encoding="utf-8")


def _read_text(path: Path) -> str:
    with boundary(ModelError, f"cannot read {path}"):
        return path.read_text(encoding="utf-8")


def _find_templates(folder: Path) -> tuple[dict[str, str], str]:
    named: dict[str, str] = {}
    file = folder / "chat_template.jinja"
    if file.is_file():
        named["default"] = _read_text(file)
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[extra.stem] = _read_text(extra)
    if named:
        return named, str(file)
    for config_name in ("tokenizer_config.json", "chat_template.json"):
        config_file = folder / config_name
        if not config_file.is_file():
            continue
        with boundary(ModelError, f"cannot read {config_file}"):
            value = json.loads(config_file.read_text(encoding="utf-8")).get("chat_template")
        if value:
            return _named_templates(value, config_file), str(config_file)
    return {}, ""


def _named_templates(value: object, file: Path) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    with boundary(ModelError, f"{file}: chat_template must be text or a list of {{name, template}}"):
        entries: list[Any] = list(value) if isinstance(value, Sequence) else [value]
        return {str(entry["name"]): str(entry["template"]) for entry in entries}
