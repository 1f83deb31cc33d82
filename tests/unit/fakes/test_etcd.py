"""Where there is no etcd, tests that need it are skipped; in continuous integration they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.etcd import find_etcd


def test_a_missing_etcd_skips_or_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("REQUIRE_ETCD", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install etcd-server"):
        find_etcd()
    monkeypatch.setenv("REQUIRE_ETCD", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install etcd-server"):
        find_etcd()
