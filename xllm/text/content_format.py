"""Does a chat template want message content as one string, or as OpenAI's list of parts?

A template that loops over the content of a message wants parts. The template's syntax tree tells: a `for`
whose iterable is `<name>.content` or `<name>['content']`, a variable set from that, or a macro parameter that
receives it. (Deciding from the template itself, under the names "string" and "openai", is vLLM's convention.)
"""

from __future__ import annotations

from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]


def detect_content_format(tree: nodes.Template) -> ContentFormat:
    """Classify a parsed template."""
    aliases = _content_aliases(tree)
    for loop in tree.find_all(nodes.For):
        if _is_content(loop.iter, aliases):
            return "openai"
    return "string"


def _is_content(node: nodes.Node, aliases: frozenset[str]) -> bool:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in aliases


def _content_aliases(tree: nodes.Template) -> frozenset[str]:
    """Names that hold message content: variables set from it and macro parameters called with it."""
    macros = {macro.name: [arg.name for arg in macro.args] for macro in tree.find_all(nodes.Macro)}
    aliases: frozenset[str] = frozenset()
    while True:
        found = set(aliases)
        for assign in tree.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and _is_content(assign.node, aliases):
                found.add(assign.target.name)
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name):
                names = macros.get(call.node.name, [])
                found.update(
                    name for name, arg in zip(names, call.args, strict=False) if _is_content(arg, aliases)
                )
        if found == aliases:
            return aliases
        aliases = frozenset(found)
