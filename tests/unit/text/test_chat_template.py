from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.small_tokenizers import build_byte_level
from xllm.errors import InvalidRequest, ModelError
from xllm.text.chat_template import ChatTemplate

CHATML = """
{%- if tools %}
<|im_start|>system
Tools:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
    {%- if message.role == "skip" %}{% continue %}{% endif %}
    {{- "<|im_start|>" + message.role + "\\n" }}
    {%- if message.role == "assistant" %}
        {%- generation %}{{ message.content | trim }}{% endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {{- "<tool_call>" + (call.function.arguments | tojson(indent=2)) + "</tool_call>" }}
        {%- endfor %}
    {%- else %}{{ message["content"] }}{% endif %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- for document in documents or [] %}{{ document.title }};{% endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}
{%- if enable_thinking is defined and not enable_thinking %}{{ "<think></think>" }}{% endif %}{% endif %}
{{- eos_token }}"""

PARTS = """{%- macro show(content) -%}
{%- if content is string %}{{ content }}{% else %}
{%- for part in content %}{{ part.text }}|{% endfor %}{% endif %}
{%- endmacro -%}
{%- for message in messages %}[{{ message.role }}]{{ show(message.content) }}{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""

STRICT = """{%- set ns = namespace(last="") %}
{%- for message in messages %}
{%- if message.role == ns.last %}{{ raise_exception("roles must alternate, got " + message.role + " twice") }}{% endif %}
{%- set ns.last = message.role %}{{ bos_token }}{{ message.role }}: {{ message.content }}
{% endfor %}"""

USER = {"role": "user", "content": "What's <b>2 & 3</b>? Grüße 你好"}
CALL = {
    "role": "assistant",
    "content": " done ",
    "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": {"x": "é<>&'\"", "n": [1, 2]}}}
    ],
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "Grüße <&'\">", "parameters": {}},
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "5"}, USER],
    [USER, CALL, {"role": "tool", "content": "[1]"}, {"role": "skip", "content": "no"}],
]
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=build_byte_level(), **SPECIAL)


@pytest.mark.parametrize("template", [CHATML, PARTS, STRICT], ids=["chatml", "parts", "strict"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize(
    "options", [{}, {"tools": [TOOL]}, {"enable_thinking": False}, {"documents": [{"title": "T"}]}]
)
def test_rendering_equals_transformers(
    reference: Any, template: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    for add_generation_prompt in (True, False):
        expected = reference.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
        given = {name: value for name, value in options.items() if name in ("tools", "documents")}
        others = {name: value for name, value in options.items() if name not in given}
        ours = ChatTemplate(template, SPECIAL).render(
            messages, add_generation_prompt=add_generation_prompt, template_kwargs=others, **given
        )
        if template is PARTS:  # parts are always handed over as a list; the macro marks their ends
            ours = ours.replace("|", "")
        assert ours == expected


@pytest.mark.parametrize("template", [CHATML, STRICT])
def test_continuing_the_final_message_equals_transformers(reference: Any, template: str) -> None:
    messages = [USER, {"role": "assistant", "content": "The answer is"}]
    expected = reference.apply_chat_template(
        messages, chat_template=template, tokenize=False, continue_final_message=True
    )
    ours = ChatTemplate(template, SPECIAL).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert ours == expected
    assert ours.endswith("The answer is")


def test_continuing_needs_a_text_that_is_printed_and_no_generation_prompt() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(InvalidRequest, match="does not print"):
        template.render([USER], add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="exclude"):
        template.render([USER], continue_final_message=True)
    with pytest.raises(InvalidRequest):
        template.render([], add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "string"),
        (PARTS, "openai"),
        ("{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% for m in messages %}{% set c = m.content %}{% for p in c|list %}x{% endfor %}{% endfor %}",
            "openai",
        ),
        ("{% for m in messages %}{% set c = m.content %}{{ c }}{% endfor %}", "string"),
    ],
)
def test_content_format_is_detected(template: str, expected: str) -> None:
    assert ChatTemplate(template).content_format() == expected


def test_content_takes_the_form_the_template_wants() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    as_text = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert as_text.render([{"role": "user", "content": parts}]) == "a\nb"
    assert as_text.render([{"role": "assistant", "content": None}]) == ""
    as_parts = ChatTemplate(PARTS)
    assert as_parts.render([{"role": "user", "content": "a"}], add_generation_prompt=False) == "[user]a|"
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(InvalidRequest, match="image_url"):
        as_text.render([{"role": "user", "content": image}])


def test_tool_call_arguments_arrive_as_json_text_and_broken_ones_stay_text() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments.x or 'text' }}{% endfor %}{% endfor %}"
    )
    messages = [
        {"role": "assistant", "tool_calls": [{"function": {"arguments": a}}]} for a in ('{"x": 5}', "{oops")
    ]
    assert template.render(messages) == "5text"


def test_the_template_may_refuse_and_its_words_reach_the_user() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate, got user twice") as caught:
        ChatTemplate(STRICT, SPECIAL).render([USER, USER])
    assert caught.value.status == 400
    with pytest.raises(InvalidRequest, match="the chat template"):
        ChatTemplate("{{ messages[0].nothing.at.all }}").render([USER])
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        ChatTemplate("{{ 1 / 0 }}").render([USER])


def test_template_variables_cannot_replace_the_conversation() -> None:
    template = ChatTemplate("{{ messages | length }}{{ add_generation_prompt }}{{ mood }}")
    assert template.render([USER], template_kwargs={"mood": "!"}) == "1True!"
    for name in ("messages", "tools", "documents", "add_generation_prompt"):
        with pytest.raises(InvalidRequest, match=name):
            template.render([USER], template_kwargs={name: []})


def test_the_sandbox_keeps_python_out() -> None:
    for attack in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ):
        with pytest.raises(InvalidRequest):
            ChatTemplate(attack).render([USER])


def test_time_comes_from_the_given_clock() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render([USER]) == "26 Jul 2024"


def test_a_broken_template_names_its_source(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        ChatTemplate.try_from_dir(tmp_path)


def test_templates_are_found_where_models_keep_them(tmp_path: Path) -> None:
    assert ChatTemplate.try_from_dir(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config {{ bos_token }}"}))

    def rendered(tools: list[dict[str, Any]] | None = None, override: str | None = None) -> str:
        template = ChatTemplate.try_from_dir(tmp_path, SPECIAL, override=override)
        assert template is not None
        return template.render([USER], tools=tools)

    assert rendered() == "config <|im_start|>"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert (rendered(), rendered([TOOL])) == ("plain", "with tools")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert rendered() == "file"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("file with tools")
    assert rendered([TOOL]) == "file with tools"
    assert rendered(override="inline {{ messages | length }}") == "inline 1"
    other = tmp_path / "other.jinja"
    other.write_text("other")
    assert rendered(override=str(other)) == "other"
    with pytest.raises(ModelError, match=r"missing\.jinja"):
        rendered(override=str(tmp_path / "missing.jinja"))


def test_no_default_among_several_named_templates() -> None:
    template = ChatTemplate({"rag": "a", "other": "b"})
    with pytest.raises(InvalidRequest, match="--chat-template"):
        template.render([USER])
