from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.etcd import free_port
from xllm.base.phases import SPANS_MARK, Span
from xllm.bench.processes import measure_tree
from xllm.bench.startup import StartupResult, format_startup, measure_startup
from xllm.errors import DeadlineExceeded, InstanceError

ROOT = str(Path(__file__).parents[3])
SERVER = """
import asyncio, sys
sys.path.insert(0, {root!r})
from tests.fakes.openai_server import FakeOpenAI
from aiohttp import web
web.run_app(FakeOpenAI(ready_after=2).app(), host="127.0.0.1", port={port}, print=None)
"""


def test_the_stages_of_a_real_process_are_seen_in_order() -> None:
    port = free_port()
    code = SERVER.format(root=ROOT, port=port)
    result = asyncio.run(
        measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{port}", timeout_s=200)
    )
    assert 0 < result.port_open_s <= result.ready_s <= result.first_token_s


def test_a_server_that_dies_shows_the_end_of_its_log() -> None:
    code = "import sys; print('no such model', file=sys.stderr); sys.exit(3)"
    with pytest.raises(InstanceError, match=r"status 3(.|\n)*no such model"):
        asyncio.run(
            measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{free_port()}", timeout_s=200)
        )


def test_a_server_that_never_comes_up_is_ended_at_the_deadline() -> None:
    code = "import time; time.sleep(60)"
    with pytest.raises(DeadlineExceeded):
        asyncio.run(
            measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{free_port()}", timeout_s=0.5)
        )


def test_what_a_start_consists_of_is_read_from_the_log_and_from_the_kernel() -> None:
    port = free_port()
    line = (
        "12:00:00.000 I serve launch.local: " + SPANS_MARK + "edge/config 0.000+0.250, engine/a b 0.100+2.000"
    )
    code = f"print({line!r}, flush=True)" + SERVER.format(root=ROOT, port=port)
    result = asyncio.run(
        measure_startup([sys.executable, "-c", code], f"http://127.0.0.1:{port}", timeout_s=200)
    )
    assert result.phases == (Span("edge", "config", 0.0, 0.25), Span("engine", "a b", 0.1, 2.0))
    (process,) = result.processes
    assert process.num_threads >= 1 and process.cpu_s > 0
    assert 1 << 20 < process.pss_bytes <= process.rss_bytes
    assert result.as_json()["pss_bytes"] == process.pss_bytes
    text = format_startup([result])
    assert "engine: a b" in text and "together: " in text


def test_a_tree_is_the_process_and_all_below_it() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"1\n"
        tree = measure_tree(process.pid)
        process.stdin.write(b"\n")
    assert len(tree) == 2 and tree[0].pid == process.pid and os.getpid() not in {p.pid for p in tree}
    assert measure_tree(process.pid) == [], "it has ended"


def test_the_block_shows_median_and_range() -> None:
    results = [StartupResult(1.0, 2.0, 3.0), StartupResult(1.5, 2.5, 3.5), StartupResult(5.0, 6.0, 7.0)]
    lines = format_startup(results).splitlines()
    assert lines[1] == "Process start to port open (s):          1.50       (of 3: 1.00 to 5.00)"
    assert format_startup(results[:1]).splitlines()[3] == "Process start to first token (s):        3.00"
