"""The chat template (ChatML with tools and a thinking switch) and the same text as trainable segments."""

from __future__ import annotations

import json

from .phrases import Document

TOOLS_HEAD = "# Tools\n\nThese functions can be called:\n<tools>"
TOOLS_TAIL = (
    '\n</tools>\n\nA call looks like this:\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>'
)
THINK_LINE = "Think before you answer."

CHAT_TEMPLATE = """\
{%- set ns = namespace(head='', last_user=-1) -%}
{%- if messages[0].role == 'system' -%}{%- set ns.head = messages[0].content -%}{%- endif -%}
{%- if tools -%}
{%- if ns.head -%}{%- set ns.head = ns.head + '\\n\\n' -%}{%- endif -%}
{%- set ns.head = ns.head + '# Tools\\n\\nThese functions can be called:\\n<tools>' -%}
{%- for tool in tools -%}{%- set ns.head = ns.head + '\\n' + (tool | tojson) -%}{%- endfor -%}
{%- set ns.head = ns.head + '\\n</tools>\\n\\nA call looks like this:\\n<tool_call>\\n' -%}
{%- set ns.head = ns.head + '{"name": ..., "arguments": {...}}\\n</tool_call>' -%}
{%- endif -%}
{%- if enable_thinking is defined and enable_thinking -%}
{%- if ns.head -%}{%- set ns.head = ns.head + '\\n\\n' -%}{%- endif -%}
{%- set ns.head = ns.head + 'Think before you answer.' -%}
{%- endif -%}
{%- if ns.head -%}{{- '<|im_start|>system\\n' + ns.head + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'assistant' -%}
{%- if '</think>' in content and loop.index0 < ns.last_user -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- elif message.reasoning_content is defined and message.reasoning_content and loop.index0 > ns.last_user -%}
{%- set content = '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' + content -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function if call.function is defined else call -%}
{%- if not loop.first or content -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": ' + (call.name | tojson) + ', "arguments": ' -}}
{{- call.arguments if call.arguments is string else (call.arguments | tojson) -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def _system_text(document: Document) -> str:
    parts = []
    if document.messages[0]["role"] == "system":
        parts.append(document.messages[0]["content"])
    if document.tools:
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in document.tools)
        parts.append(TOOLS_HEAD + lines + TOOLS_TAIL)
    if document.thinking:
        parts.append(THINK_LINE)
    return "\n\n".join(parts)


def _assistant_text(message: dict) -> str:
    calls = []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        calls.append(
            f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}\n</tool_call>'
        )
    content = [message["content"]] if message["content"] else []
    return "\n".join(content + calls)


def segments(document: Document) -> list[tuple[str, bool]]:
    """The rendered conversation in pieces; True marks what the assistant says (and is trained on)."""
    system = _system_text(document)
    pieces: list[tuple[str, bool]] = []
    text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    messages = document.messages
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "system" and i == 0:
            continue
        if role == "assistant":
            pieces.append((text + "<|im_start|>assistant\n", False))
            # With thinking on, earlier turns are shown without their think block: nothing to learn from them.
            learn = not document.thinking or i + 1 == len(messages)
            pieces.append((_assistant_text(message) + "<|im_end|>", learn))
            text = "\n"
        elif role == "tool":
            text += "<|im_start|>user" if messages[i - 1]["role"] != "tool" else ""
            text += f"\n<tool_response>\n{message['content']}\n</tool_response>"
            text += "<|im_end|>\n" if i + 1 == len(messages) or messages[i + 1]["role"] != "tool" else ""
        else:
            text += f"<|im_start|>{role}\n{message['content']}<|im_end|>\n"
    return [*pieces, (text, False)]
