"""Real engine processes with the timed executor."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.model_dirs import write_config
from tests.fakes.scenes import run
from tests.fakes.served_engine import Inbox, make_request, until
from xllm.base.affinity import kept_affinity, set_affinity
from xllm.config.load import load_arguments
from xllm.config.serve import EngineConfig
from xllm.errors import ConfigError, DeadlineExceeded, InstanceLost, ModelError, Unauthorized
from xllm.launch.engine_process import EngineProcess
from xllm.launch.starting_engine import StartingEngine, start_engine
from xllm.perf.step_time import PROFILES, profile_json
from xllm.rpc.client import EngineClient

ROOT = Path(__file__).resolve().parents[3]
GONE_S = 100.0


def engine_config(tmp_path: Path, **arguments: object) -> EngineConfig:
    said = {"model": str(write_config(tmp_path / "model")), "executor": "timed:instant", **arguments}
    return load_arguments(said).engine()


def slow_profile(tmp_path: Path, step_s: float) -> str:
    path = tmp_path / "slow.json"
    path.write_text(profile_json(replace(PROFILES["instant"], name="slow", overhead_s=step_s)))
    return f"timed:{path}"


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_gone(pid: int) -> None:
    deadline_s = time.monotonic() + GONE_S
    while exists(pid):
        assert time.monotonic() < deadline_s, f"process {pid} is still there"
        time.sleep(0.02)


def all_children() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


@pytest.fixture(autouse=True)
def others() -> Iterator[set[str]]:
    """Children that other tests keep (servers of a whole session)."""
    OTHERS.clear()
    OTHERS.update(all_children())
    yield OTHERS


OTHERS: set[str] = set()


def num_children() -> int:
    """Children started since the test began."""
    return len(all_children() - OTHERS)


async def connect(process: EngineProcess, inbox: Inbox) -> EngineClient:
    return await EngineClient.connect(
        process.address,
        peer="edge",
        token=process.token,
        on_outputs=inbox.frames.append,
        on_lost=inbox.lost.append,
    )


def test_an_engine_starts_serves_and_ends_without_a_trace(tmp_path: Path) -> None:
    lines: list[str] = []
    process = EngineProcess.start(engine_config(tmp_path), sink=lines.append)
    private_dir = Path(process.address.removeprefix("unix:")).parent
    assert private_dir.stat().st_mode & 0o077 == 0

    async def scene() -> None:
        inbox = Inbox()
        client = await connect(process, inbox)
        await client.submit(make_request("a", max_tokens=20))
        await until(lambda: ("a", 0) in inbox.terminal())
        assert len(inbox.tokens("a")) == 20
        assert (await client.info()) == process.info
        await client.close()
        with pytest.raises(Unauthorized):
            await EngineClient.connect(process.address, peer="stranger", token="guess")

    run(scene)
    assert process.is_alive
    assert process.info.pid == process.pid
    assert [span.phase for span in process.spans] == [
        "interpreter and own imports",
        "config",
        "imports",
        "executor",
        "brain",
        "listening",
    ]
    process.close()
    process.close()
    assert process.returncode == 0
    assert not exists(process.pid)
    assert not private_dir.exists()
    assert num_children() == 0
    assert any("ready at unix:" in line for line in lines)


def test_a_timed_engine_never_loads_torch(tmp_path: Path) -> None:
    process = EngineProcess.start(engine_config(tmp_path), sink=lambda line: None)
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "msgspec" in maps  # the file does name what is loaded
        assert "libtorch" not in maps
    finally:
        process.close()
    script = (
        "import sys; from xllm.config.load import load_arguments; from xllm.engine.build import build_engine;"
        "import xllm.engine.server.main, xllm.launch.local;"
        "build_engine(load_arguments({'model': sys.argv[1], 'executor': 'timed:instant'}).engine());"
        "assert 'torch' not in sys.modules; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], cwd=ROOT, check=True, timeout=200)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"executor": "timed:nonsense"}, ConfigError, "neither built in nor a file"),
        ({"model": "/nowhere/at/all"}, ModelError, "nowhere"),
        ({"endpoint": "unix:/nowhere/at/all/s"}, ConfigError, "cannot listen"),
        ({"endpoint": "gibberish:x:y"}, ConfigError, "not understood"),
        ({"max_model_len": 100_000_000, "num_gpu_blocks_override": 4}, ConfigError, "max_model_len"),
    ],
)
def test_errors_of_the_start_keep_their_type_and_hint(
    tmp_path: Path, change: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as raised:
        EngineProcess.start(engine_config(tmp_path, **change), sink=lambda line: None)
    assert "hint: " in str(raised.value)
    assert num_children() == 0


def test_a_child_that_dies_before_it_is_ready_tells_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(InstanceLost, match="before it was ready") as raised:
        EngineProcess.start(engine_config(tmp_path), env={"PYTHONHOME": "/nowhere"}, sink=lambda line: None)
    assert "encodings" in raised.value.message or "Python" in raised.value.message
    assert num_children() == 0


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match="not ready in time"):
        EngineProcess.start(engine_config(tmp_path), timeout_s=0.01, sink=lambda line: None)
    assert num_children() == 0


def test_deleting_the_object_ends_the_engine(tmp_path: Path) -> None:
    process = EngineProcess.start(engine_config(tmp_path), sink=lambda line: None)
    pid = process.pid
    assert exists(pid)
    del process
    gc.collect()
    wait_gone(pid)
    assert num_children() == 0


def test_a_frozen_engine_is_killed(tmp_path: Path) -> None:
    process = EngineProcess.start(engine_config(tmp_path), sink=lambda line: None)
    os.kill(process.pid, signal.SIGSTOP)
    process.close()
    assert process.returncode == -signal.SIGKILL
    assert num_children() == 0


def test_a_killed_engine_is_noticed_at_once(tmp_path: Path) -> None:
    process = EngineProcess.start(engine_config(tmp_path), sink=lambda line: None)

    async def scene() -> None:
        inbox = Inbox()
        await connect(process, inbox)
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: bool(inbox.lost))

    run(scene)
    assert process.wait(100) == -signal.SIGKILL
    process.close()


def test_sigterm_drains_then_ends(tmp_path: Path) -> None:
    process = EngineProcess.start(
        engine_config(tmp_path, executor=slow_profile(tmp_path, 0.02)), sink=lambda line: None
    )

    async def scene() -> None:
        inbox = Inbox()
        client = await connect(process, inbox)
        await client.submit(make_request("a", max_tokens=20))
        os.kill(process.pid, signal.SIGTERM)
        await until(lambda: bool(inbox.lost))
        assert inbox.terminal()["a", 0][0].finish_reason == "length"
        assert len(inbox.tokens("a")) == 20

    run(scene)
    assert process.wait(100) == 0
    process.close()


def test_closing_ends_requests_in_flight_with_an_error(tmp_path: Path) -> None:
    process = EngineProcess.start(
        engine_config(tmp_path, executor=slow_profile(tmp_path, 0.05)), sink=lambda line: None
    )

    async def scene() -> None:
        inbox = Inbox()
        client = await connect(process, inbox)
        await client.submit(make_request("a", max_tokens=300))
        await asyncio.to_thread(process.close)
        await until(lambda: bool(inbox.lost))
        (terminal,) = inbox.terminal()["a", 0]
        assert terminal.finish_reason == "error"
        assert terminal.error is not None
        assert terminal.error.retryable

    run(scene)
    assert process.returncode == 0


def test_sigusr1_prints_the_waits_of_the_engine(tmp_path: Path) -> None:
    lines: list[str] = []
    process = EngineProcess.start(
        engine_config(tmp_path, executor=slow_profile(tmp_path, 0.3)), sink=lines.append
    )

    async def scene() -> None:
        inbox = Inbox()
        client = await connect(process, inbox)
        await client.submit(make_request("a", max_tokens=300))
        os.kill(process.pid, signal.SIGUSR1)
        await until(lambda: any("== thread" in line for line in lines))
        assert any(line.startswith("step loop: step") for line in lines)
        await client.close()

    run(scene)
    process.close()


PARENT = """
import os, sys, time
from xllm.config.load import load_arguments
from xllm.launch.engine_process import EngineProcess

process = EngineProcess.start(load_arguments({"model": sys.argv[1], "executor": "timed:instant"}).engine())
fork = 0
if sys.argv[2] == "forked":
    fork = os.fork()
    if fork == 0:
        time.sleep(200)
        os._exit(0)
print(process.pid, fork, process.address, flush=True)
time.sleep(200)
"""


@pytest.mark.parametrize("kind", ["alone", "forked"])
def test_the_death_of_the_parent_ends_the_engine(tmp_path: Path, kind: str) -> None:
    model = write_config(tmp_path / "model")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model), kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid_text, fork_text, address = parent.stdout.readline().split()
    assert exists(int(pid_text))
    parent.kill()
    parent.wait(100)
    try:
        wait_gone(int(pid_text))
        assert not Path(address.removeprefix("unix:")).parent.exists()
    finally:
        if int(fork_text):
            os.kill(int(fork_text), signal.SIGKILL)


def test_an_engine_that_is_started_again_may_use_what_the_first_one_could(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("one CPU")
    starting = start_engine(engine_config(tmp_path))
    first = starting.wait()
    try:
        with kept_affinity():
            set_affinity(
                sorted(before)[:1]
            )  # as the edge does, once it has left the other CPUs to the engine
            again = StartingEngine(starting.start_again).wait()
        try:
            assert os.sched_getaffinity(again.pid) == os.sched_getaffinity(first.pid) == before
        finally:
            again.close()
    finally:
        first.close()
