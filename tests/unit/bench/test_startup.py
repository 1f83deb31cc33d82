from __future__ import annotations

import asyncio
import sys

import pytest

from xllm.bench.startup import StartupResult, format_startup, free_port, measure_startup
from xllm.errors import DeadlineExceeded, InstanceError

SERVER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.fakes.openai_server import FakeOpenAI
from aiohttp import web
web.run_app(FakeOpenAI(ready_after=2).app(), host="127.0.0.1", port={port}, print=None)
"""


def test_the_stages_of_a_real_process_are_seen_in_order() -> None:
    port = free_port()
    code = SERVER.format(root=str(__import__("pathlib").Path(__file__).parents[3]), port=port)
    result = asyncio.run(
        measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{port}", timeout_s=60)
    )
    assert 0 < result.port_open_s <= result.ready_s <= result.first_token_s


def test_a_server_that_dies_shows_the_end_of_its_log() -> None:
    code = "import sys; print('no such model', file=sys.stderr); sys.exit(3)"
    with pytest.raises(InstanceError, match=r"status 3(.|\n)*no such model"):
        asyncio.run(
            measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{free_port()}", timeout_s=60)
        )


def test_a_server_that_never_comes_up_is_ended_at_the_deadline() -> None:
    code = "import time; time.sleep(60)"
    with pytest.raises(DeadlineExceeded):
        asyncio.run(
            measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{free_port()}", timeout_s=0.5)
        )


def test_the_block_shows_median_and_range() -> None:
    results = [StartupResult(1.0, 2.0, 3.0), StartupResult(1.5, 2.5, 3.5), StartupResult(5.0, 6.0, 7.0)]
    lines = format_startup(results).splitlines()
    assert lines[1] == "Process start to port open (s):          1.50       (of 3: 1.00 to 5.00)"
    assert format_startup(results[:1]).splitlines()[3] == "Process start to first token (s):        3.00"
