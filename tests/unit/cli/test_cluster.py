"""``xllm cluster``: tables for people, roles by group, wrong calls."""

from __future__ import annotations

from typing import Any

import pytest

from xllm.cli.cluster import format_roles, format_status
from xllm.cli.main import main
from xllm.launch.cluster_admin import group_roles


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "state": "ready", "model": "m", "revision": "", "role": "mixed", **fields}


FOUND: dict[str, list[dict[str, Any]]] = {
    "instances": [
        row("b", role="decode", revision="v2"),
        row("a", role="prefill", revision="v2", state="lost"),
        row("c"),
        {"id": "odd", "state": "unreadable", "message": "no instance"},
    ],
    "services": [{"id": "s1", "url": "http://h:1", "pid": 7}],
    "leaders": [{"duty": "controller", "holder": "s1"}, {"duty": "other", "holder": "gone"}],
}


def test_roles_are_grouped_by_model_and_revision() -> None:
    roles = group_roles(FOUND)
    assert [(g["model"], g["revision"], g["roles"]) for g in roles["groups"]] == [
        ("", "", {}),
        ("m", "", {"mixed": 1}),
        ("m", "v2", {"decode": 1, "prefill": 1}),
    ]
    assert [item["id"] for item in roles["groups"][2]["instances"]] == ["b", "a"]
    assert roles["leaders"] == [
        {"duty": "controller", "holder": "s1", "url": "http://h:1"},
        {"duty": "other", "holder": "gone", "url": ""},
    ]


def test_tables_are_for_people() -> None:
    text = format_roles(group_roles(FOUND))
    lines = [line.split() for line in text.splitlines()]
    assert ["MODEL", "REVISION", "ROLE", "INSTANCE", "STATE"] in lines
    assert ["m", "v2", "prefill", "a", "lost"] in lines and ["m", "-", "mixed", "c", "ready"] in lines
    assert ["controller", "s1", "http://h:1"] in lines
    assert "no model is published" in format_roles(group_roles({k: [] for k in FOUND}))
    assert "unreadable" in format_status(FOUND) and "controller" in format_status(FOUND)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("roles", "a"), "status and roles none"),
        (("drain",), "name of one instance"),
        (("status", "--no-wait"), "--no-wait means nothing"),
        (("drain", "a", "--drain-timeout", "-1"), "--drain-timeout is -1"),
    ],
)
def test_wrong_calls_are_refused(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", *args, "--registry", "tcp://127.0.0.1:1"]) == 2
    assert said in capsys.readouterr().err
