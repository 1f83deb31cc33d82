from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from xllm.base.log import REQUEST_LOGGER, get_logger, setup_logging
from xllm.config.log import LogConfig


@pytest.fixture(autouse=True)
def _restore_root_logger() -> Iterator[None]:
    root, own, requests = (logging.getLogger(name) for name in (None, "xllm", REQUEST_LOGGER))
    handlers, level, own_level = root.handlers[:], root.level, own.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    own.setLevel(own_level)
    requests.setLevel(logging.NOTSET)


def test_human_lines() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(), "engine", stream=stream)
    get_logger("xllm.engine.core").info("step %d", 3, extra={"num_rows": 2})
    get_logger("xllm.engine.core").debug("hidden")
    get_logger("elsewhere").info("hidden")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("I engine engine.core: step 3 num_rows=2")


def test_json_lines_with_traceback() -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(level="debug", format="json"), "edge", stream=stream)
    try:
        raise KeyError("k")
    except KeyError:
        get_logger("xllm.api").exception("broken", extra={"request_id": "r1"})
    entry = json.loads(stream.getvalue())
    assert (entry["level"], entry["process"], entry["message"], entry["request_id"]) == (
        "error",
        "edge",
        "broken",
        "r1",
    )
    assert "KeyError" in entry["traceback"]


def test_a_second_set_up_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging(LogConfig(), "a", stream=first)
    setup_logging(LogConfig(level="warning"), "b", stream=second)
    get_logger("xllm").info("hidden")
    get_logger("xllm").warning("shown")
    assert first.getvalue() == "" and second.getvalue().count("\n") == 1


@pytest.mark.parametrize("log_requests", [False, True])
def test_requests_are_logged_only_when_asked_for(log_requests: bool) -> None:
    stream = io.StringIO()
    setup_logging(LogConfig(log_requests=log_requests), "edge", stream=stream)
    get_logger(REQUEST_LOGGER).info("r1 arrived")
    assert ("r1 arrived" in stream.getvalue()) == log_requests
