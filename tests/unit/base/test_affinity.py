from __future__ import annotations

import logging
import os
import threading
from typing import Any

import pytest

from xllm.base.affinity import kept_affinity, set_affinity

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not Linux")


def in_a_thread(work: Any) -> None:
    """Affinity belongs to the thread: the test's own stays as it is."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(100)
    if failed:
        raise failed[0]


def test_a_thread_is_confined_and_set_free() -> None:
    def work() -> None:
        before = os.sched_getaffinity(0)
        with kept_affinity():
            set_affinity({min(before)})
            assert os.sched_getaffinity(0) == {min(before)}
        assert os.sched_getaffinity(0) == before

    in_a_thread(work)


def test_cpus_that_are_gone_are_a_warning(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        in_a_thread(lambda: set_affinity({10_000}))
    assert "10000" in caplog.text
