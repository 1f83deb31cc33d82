from __future__ import annotations

import sys

import pytest

from xllm.base.registry import Registry
from xllm.errors import ConfigError

TABLE: Registry[object] = Registry(
    "test_kind",
    {"ordered": "collections:OrderedDict", "gone": "no_such_module:X", "empty": "collections:NoSuch"},
)


def test_a_row_is_imported_only_when_asked_for() -> None:
    sys.modules.pop("wave", None)
    table: Registry[object] = Registry("test_kind", {"wave": "wave:Wave_read"})
    assert table.target("wave") == "wave:Wave_read" and "wave" not in sys.modules
    assert table.load("wave") is sys.modules["wave"].Wave_read


def test_names_and_membership() -> None:
    assert TABLE.names() == ("empty", "gone", "ordered")
    assert "ordered" in TABLE and "missing" not in TABLE
    assert TABLE.group == "xllm.test_kind"


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown test_kind 'orderd'") as caught:
        TABLE.load("orderd")
    assert "did you mean 'ordered'" in caught.value.hint


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_a_row_that_cannot_be_loaded_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot load test_kind '{name}'"):
        TABLE.load(name)


def test_rows_must_name_module_and_attribute() -> None:
    with pytest.raises(ValueError, match="module:attribute"):
        Registry("test_kind", {"bad": "collections.OrderedDict"})


def test_packages_add_rows_by_entry_points(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    info = Path(str(tmp_path)) / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[xllm.test_kind]\nadded = collections:Counter\nordered = collections:deque\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from collections import Counter, OrderedDict

    assert TABLE.load("added") is Counter
    assert TABLE.load("ordered") is OrderedDict, "an installed package must not replace a built-in"
