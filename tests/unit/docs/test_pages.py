"""What the hand-written pages name exists: files, links, flags, Python that compiles."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from xllm.base.metrics import METRICS, PREFIX
from xllm.cli.main import COMMANDS, Parser
from xllm.config.load import Schema

ROOT = Path(__file__).resolve().parents[3]
GENERATED = {
    ROOT / "docs" / "reference" / name
    for name in ("fields.md", "configuration.md", "errors.md", "metrics.md")
}
PAGES = sorted({*(ROOT / "docs").rglob("*.md"), ROOT / "GLOSSARY.md"})
OWN = [page for page in PAGES if page not in GENERATED]
IDS = [str(page.relative_to(ROOT)) for page in OWN]
_PATH = re.compile(r"`((?:xllm|tests|docs|scripts|recipes|benchmarks)/[\w./*-]*[\w*/])`")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOREIGN_FLAGS = {
    "--fail-with-body",
    "--no-buffer",
    "--out",
    "--wheels",
    "--python",
    "--quick",
    "--resume",
    "--device",
    "--minutes",
    "--clients",
    "--engines",
    "--netns",
    "--etcd-down-minutes",
    "--policy",
    "--kinds",
}


def _known_flags() -> set[str]:
    from importlib import import_module

    known = {"--help", "--version", "--config", "--set", "--print-config", *FOREIGN_FLAGS}
    for option in Schema().options:
        if option.flag:
            known |= {option.flag, *option.aliases, *option.negative_aliases}
            if option.kind == "bool":
                known |= {"--no-" + name.removeprefix("--") for name in (option.flag, *option.aliases)}
    for name, (module, summary) in COMMANDS.items():
        parser = Parser(prog=f"xllm {name}", description=summary)
        import_module(module).add_arguments(parser)
        known |= _flags_of(parser)
    return known


def _flags_of(parser: object) -> set[str]:
    found: set[str] = set()
    for action in getattr(parser, "_actions"):  # noqa: B009
        found |= set(action.option_strings)
        for child in (
            (getattr(action, "choices", None) or {}).values() if isinstance(action.choices, dict) else ()
        ):
            found |= _flags_of(child)
    return found


@pytest.mark.parametrize("page", OWN, ids=IDS)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [name for name in _PATH.findall(text) if not list(ROOT.glob(name.rstrip("/")))]
    assert not missing, f"{page.name} names files that do not exist: {missing}"


@pytest.mark.parametrize("page", OWN, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    broken = [link for link in links if not (page.parent / link).exists()]
    assert not broken, f"{page.name} has broken links: {broken}"


def test_flags_exist() -> None:
    known = _known_flags()
    for page in OWN:
        unknown = set(_FLAG.findall(page.read_text(encoding="utf-8"))) - known
        assert not unknown, f"{page.relative_to(ROOT)} names unknown flags: {sorted(unknown)}"


@pytest.mark.parametrize("page", OWN, ids=IDS)
def test_snippets_parse_and_pages_are_short(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 or page.name == "GLOSSARY.md", f"{page.name} is too long"
    for language, code in _FENCE.findall(text):
        if language == "python":
            ast.parse(code)
        elif language == "json":
            json.loads(code)


def test_every_page_is_on_the_map() -> None:
    reached = {ROOT / "docs" / "README.md", *GENERATED}
    for page in (ROOT / "docs" / "README.md",):
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in link:
                reached.add((page.parent / link).resolve())
    lost = [str(page.relative_to(ROOT)) for page in PAGES if page not in reached]
    assert not lost, f"docs/README.md does not lead to {lost}"


_CODE = re.compile(r"`([A-Za-z_][\w.]*)`")
_IS_NAME = re.compile(r"[a-z0-9]_[a-z0-9]|_[a-z]|[a-z][A-Z]|[A-Z][a-z]+[A-Z]|[a-z]\.[a-z]")
FOREIGN_NAMES = {
    "openai.json",
    "tool_calls",
    "chat_template.json",
    "chat_template.jinja",
    "Retry-After",
    "_s",
}


def _source_words() -> set[str]:
    files = [*(ROOT / "xllm").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").glob("*")]
    return {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}


def test_names_in_code_font_exist() -> None:
    words = _source_words()
    lost: dict[str, list[str]] = {}
    for page in OWN:
        prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
        names = {name for name in _CODE.findall(prose) if _IS_NAME.search(name)} - FOREIGN_NAMES
        unknown = sorted(name for name in names if not set(name.strip(".").split(".")) <= words)
        if unknown:
            lost[page.name] = unknown
    assert not lost, f"names that are nowhere in the source: {lost}"


def test_metrics_exist() -> None:
    known = {PREFIX + row.name + ("_total" if row.kind == "counter" else "") for row in METRICS}
    for page in OWN:
        named = set(re.findall(r"\bxllm:[a-z]\w+", page.read_text(encoding="utf-8")))
        assert named <= known, f"{page.name} names metrics that do not exist: {sorted(named - known)}"


def test_options_exist() -> None:
    schema = Schema()
    option = re.compile(rf"`(?:--set )?((?:{'|'.join(schema.sections)})\.[a-z_]+)[`=]")
    for page in OWN:
        unknown = (
            set(option.findall(page.read_text(encoding="utf-8"))) - set(schema.by_key) - {"scheduler.py"}
        )
        assert not unknown, f"{page.name} names options that do not exist: {sorted(unknown)}"
